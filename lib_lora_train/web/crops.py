"""Manual cropping: what training cuts off an image, and writing another crop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.image_sizes import MAX_SHARP_ENLARGEMENT
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.buckets import make_bucket_rule, place_image
from lib_lora_train.dataset.scan import Item, ScannedConcept
from lib_lora_train.dataset_tools.crops import (
    MIN_CROP_SIDE,
    Frame,
    compute_trained_frame,
    list_nearest_buckets,
    write_crop,
)
from lib_lora_train.dataset_tools.repairs import write_undo
from lib_lora_train.web.form_check import ScannedDataset
from lib_lora_train.web.image_tokens import ImageTokens


class CropSession:
    """Shows and writes crops of the scanned dataset. Crops can be undone, latest first."""

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
        return {"crop-open": self.open, "crop-write": self.write, "crop-undo": self.undo}

    def open(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The size of an image, the frame that training uses, its bucket and those of similar shape."""
        item, _ = self._find(values)
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
            "min_side": MIN_CROP_SIDE,
            "max_sharp_enlargement": MAX_SHARP_ENLARGEMENT,
            "buckets": [list(size) for size in (own, *others)],
            "undo": len(self._undo),
        }

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an image by its crop; the original is kept beside the folder."""
        item, concept = self._find(values)
        try:
            frame = Frame(*(round(float(number)) for number in values["frame"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError("The frame of the crop is missing or invalid. Reload the page.") from error
        with self._lock:
            image = item.image.path.parent.resolve() / item.image.path.name
            result = write_crop(_folder_of(image, concept), image, frame)
            self._undo += [result.undo] if result.undo else []
        backup = f" The original is in {result.undo.parent}." if result.undo else ""
        return {"message": f"{item.image.path.name} cropped to {frame.width} × {frame.height} px.{backup}"}

    def undo(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Restore the image that was cropped last."""
        with self._lock:
            if not self._undo:
                raise DataError("There is no crop to undo.")
            write_undo(self._undo.pop())
        return {"message": "Last crop undone.", "undo": len(self._undo)}

    def _find(self, values: Mapping[str, Any]) -> tuple[Item, ScannedConcept]:
        """The image of the token, and the folder that it belongs to."""
        scanned = self._scanned()
        path = self._image_tokens.path_of(str(values.get("token", "")))
        items = scanned.dataset.items if scanned and path else ()
        item = next((one for one in items if one.image.path == path), None)
        if scanned is None or item is None:
            raise DataError("This image is no longer in the dataset. Press Scan.")
        return item, scanned.dataset.concepts[item.concept]


def _folder_of(image: Path, concept: ScannedConcept) -> Path:
    """The folder of the concept; originals are kept beside it, where they are not trained on."""
    folder = user_path(concept.settings.folder).resolve()
    return folder if folder in image.parents else image.parent
