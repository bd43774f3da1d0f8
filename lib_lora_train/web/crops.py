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
from lib_lora_train.dataset.images import read_image_file
from lib_lora_train.dataset.scan import Item, ScannedConcept
from lib_lora_train.dataset_tools.crops import (
    MIN_CROP_SIDE,
    Frame,
    compute_trained_frame,
    list_nearest_buckets,
    write_crop,
)
from lib_lora_train.dataset_tools.repairs import list_undos, write_undo
from lib_lora_train.web.form_check import ScannedDataset
from lib_lora_train.web.image_tokens import ImageTokens

_KINDS = ("crop",)


class CropSession:
    """Shows and writes crops. A request names the folder and the image; crops can be undone, latest first."""

    def __init__(
        self, image_tokens: ImageTokens, scanned: Callable[[], ScannedDataset | None], config: Callable[[], TrainConfig]
    ) -> None:
        self._image_tokens = image_tokens
        self._scanned = scanned
        self._config = config
        self._lock = threading.Lock()

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {"crop-open": self.open, "crop-write": self.write, "crop-undo": self.undo}

    def open(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The size of an image, the frame that training uses, its bucket and those of similar shape."""
        item, concept = self._find(values)
        image = item.image
        folder = _folder_of(_resolved(image.path), concept)
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
            "folder": str(folder),
            "seen": image.content_hash,
            "undo": len(list_undos(folder, _KINDS)),
            "record": _newest(folder),
        }

    def write(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an image by its crop; the original is kept beside the folder."""
        try:
            frame = Frame(*(round(float(number)) for number in values["frame"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError("The frame of the crop is missing or invalid. Reload the page.") from error
        path = self._image_tokens.path_of(str(values.get("token", "")))
        folder = _named_folder(values)
        image = _resolved(path) if path else None
        if image is None or folder not in image.parents:
            raise DataError("This image is no longer in the dataset. Press Scan.")
        with self._lock:
            if read_image_file(image).content_hash != values.get("seen"):
                raise DataError(f"{image.name} has changed since it was shown. Press Scan, then crop it again.")
            result = write_crop(folder, image, frame)
        backup = f" The original is in {result.undo.parent}." if result.undo else ""
        return {"message": f"{image.name} cropped to {frame.width} × {frame.height} px.{backup}"}

    def undo(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Restore the image of the folder that was cropped last; DataError if the page has not seen that crop."""
        folder = _named_folder(values)
        with self._lock:
            records = list_undos(folder, _KINDS)
            if not records:
                raise DataError(f"There is no crop to undo in {folder}.")
            if values.get("record", records[0].name) != records[0].name:
                raise DataError("Something else was cropped in the meantime. Open the image again, then undo.")
            write_undo(records[0])
        return {"message": "Last crop undone.", "undo": len(records) - 1}

    def _find(self, values: Mapping[str, Any]) -> tuple[Item, ScannedConcept]:
        """The image of the token, and the folder that it belongs to."""
        scanned = self._scanned()
        path = self._image_tokens.path_of(str(values.get("token", "")))
        items = scanned.dataset.items if scanned and path else ()
        item = next((one for one in items if one.image.path == path), None)
        if scanned is None or item is None:
            raise DataError("This image is no longer in the dataset. Press Scan.")
        return item, scanned.dataset.concepts[item.concept]


def _named_folder(values: Mapping[str, Any]) -> Path:
    """The data folder that the request names."""
    text = str(values.get("folder") or "").strip()
    if not text:
        raise DataError("This image is no longer in the dataset. Press Scan.")
    return user_path(text).resolve()


def _newest(folder: Path) -> str:
    """The name of the latest crop's record, "" without one."""
    return next((record.name for record in list_undos(folder, _KINDS)), "")


def _resolved(image: Path) -> Path:
    """The image with its folder resolved; it may itself be a link."""
    return image.parent.resolve() / image.name


def _folder_of(image: Path, concept: ScannedConcept) -> Path:
    """The folder of the concept; originals are kept beside it, where they are not trained on."""
    folder = user_path(concept.settings.folder).resolve()
    return folder if folder in image.parents else image.parent
