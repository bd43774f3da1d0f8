"""Cropping by hand, the server's side: what training cuts off an image, and the crop that is written. No gradio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.buckets import make_bucket_rule, place_image
from lib_lora_train.dataset.scan import Item, ScannedConcept
from lib_lora_train.dataset_tools.crops import MIN_CROP_SIDE, Frame, list_nearest_buckets, compute_trained_frame, write_crop
from lib_lora_train.dataset_tools.repairs import write_undo
from lib_lora_train.web.form_check import ScannedDataset
from lib_lora_train.web.image_tokens import ImageTokens


class CropSession:
    """Shows and writes crops of the dataset that was looked at; the last ones can be undone."""

    def __init__(
        self, image_tokens: ImageTokens, scanned: Callable[[], ScannedDataset | None], config: Callable[[], TrainConfig]
    ) -> None:
        self._image_tokens = image_tokens
        self._scanned = scanned
        self._config = config
        self._undo: list[Path] = []
        self._lock = threading.Lock()

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {"crop-open": self.look, "crop-write": self.write, "crop-undo": self.undo}

    def scan(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """An image's size, its bucket, what training would see of it, and the buckets of nearly its shape."""
        item, _ = self._found(values)
        image = item.image
        rule = make_bucket_rule(self._config(), item.resolution)
        placement = place_image(image.width, image.height, rule)
        frame = compute_trained_frame(placement, image.width, image.height)
        own = (placement.width, placement.height)
        others = [size for size in list_nearest_buckets(image.width, image.height, rule) if size != own]
        return {
            "token": str(values["token"]),
            "name": image.path.name,
            "width": image.width,
            "height": image.height,
            "frame": [frame.left, frame.top, frame.width, frame.height],
            "lost": 1 - frame.width * frame.height / (image.width * image.height),
            "least": MIN_CROP_SIDE,
            "buckets": [list(size) for size in (own, *others)],
            "undo": len(self._undo),
        }

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the crop of a frame in the image's place; the original is kept beside the folder."""
        item, concept = self._found(values)
        try:
            frame = Frame(*(round(float(number)) for number in values["frame"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError("The crop's frame is missing. Reload the page.") from error
        with self._lock:
            image = item.image.path.parent.resolve() / item.image.path.name
            fixed = write_crop(_folder_of(image, concept), image, frame)
            self._undo += [fixed.undo] if fixed.undo else []
        kept = f" The original lies in {fixed.undo.parent}." if fixed.undo else ""
        return {"told": f"{item.image.path.name} is cropped to {frame.width} × {frame.height} px.{kept}"}

    def undo(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Put back what was there before the last crop."""
        with self._lock:
            if not self._undo:
                raise DataError("There is no crop to undo.")
            write_undo(self._undo.pop())
        return {"told": "The last crop is undone.", "undo": len(self._undo)}

    def _found(self, values: Mapping[str, Any]) -> tuple[Item, ScannedConcept]:
        """The image that the page means, and the folder it is in."""
        scanned = self._scanned()
        path = self._image_tokens.path_of(str(values.get("token", "")))
        items = scanned.dataset.items if scanned and path else ()
        item = next((one for one in items if one.image.path == path), None)
        if scanned is None or item is None:
            raise DataError("This image is not in the dataset any more. Press Look.")
        return item, scanned.dataset.concepts[item.concept]


def _folder_of(image: Path, concept: ScannedConcept) -> Path:
    """The card's folder that the image was found by; originals lie beside it, where training does not look."""
    folder = user_path(concept.settings.folder).resolve()
    return folder if folder in image.parents else image.parent
