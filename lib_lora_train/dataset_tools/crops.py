"""Manual crops: the part of an image that training uses, and cropping to a frame chosen by the user.

All frames are in pixels of the upright image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.buckets import BucketRule, Placement, list_bucket_sizes
from lib_lora_train.dataset.folder_contents import scan_folder
from lib_lora_train.dataset_tools.repairs import RepairResult, edit_image, write_replacements

MIN_CROP_SIDE = 64
"""The shortest allowed side of a frame in px: less contains nothing to learn."""


@dataclass(frozen=True)
class Frame:
    """A rectangle of an image."""

    left: int
    top: int
    width: int
    height: int


def compute_trained_frame(placement: Placement, width: int, height: int) -> Frame:
    """The part of an image of this size that training uses."""
    across, down = width / placement.resize_width, height / placement.resize_height
    return Frame(
        round(placement.left * across),
        round(placement.top * down),
        min(width, round(placement.width * across)),
        min(height, round(placement.height * down)),
    )


def list_nearest_buckets(width: int, height: int, rule: BucketRule, count: int = 12) -> Sequence[tuple[int, int]]:
    """The buckets with the most similar aspect ratio to an image's, nearest first."""
    ratio = math.log(width / height)
    return sorted(list_bucket_sizes(rule), key=lambda size: abs(math.log(size[0] / size[1]) - ratio))[:count]


def write_crop(folder: Path, image: Path, frame: Frame) -> RepairResult:
    """Crop the image, and its mask if there is one, to the frame; the originals are kept beside the data folder.

    DataError, with nothing changed, if the frame exceeds the image or is smaller than `MIN_CROP_SIDE`, if another image
    has the same mask; OutputError, likewise, if image or mask cannot be written.
    """
    mask = _find_own_mask(image)
    sizes: list[tuple[int, int]] = []

    def crop(whole: Image.Image) -> Image.Image:
        sizes.append(whole.size)  # the image is first; its mask covers it as a whole
        _require_inside(frame, sizes[0], image.name)
        return _crop(whole, frame, sizes[0])

    contents = {path: edit_image(path, crop) for path in (image, mask) if path}
    return RepairResult((image,), (), write_replacements(folder, contents, "crop"))


def _find_own_mask(image: Path) -> Path | None:
    """The image's mask file, None without one; DataError if it belongs to several images."""
    contents = scan_folder(image.parent)
    mask = contents.masks.get(image.stem)
    others = [path.name for path in contents.images if path.stem == image.stem and path.name != image.name]
    if mask and others:
        raise DataError(
            f"{mask.name} is the mask of {image.name} and of {others[0]}: cropping one would misalign it on the other. "
            "Rename one of the two images together with a copy of the mask."
        )
    return mask


def _require_inside(frame: Frame, size: tuple[int, int], name: str) -> None:
    if min(frame.width, frame.height) < MIN_CROP_SIDE:
        raise DataError(f"{name}: the frame is {frame.width}×{frame.height} px. Make it at least {MIN_CROP_SIDE} px.")
    is_inside = frame.left >= 0 and frame.top >= 0
    if not is_inside or frame.left + frame.width > size[0] or frame.top + frame.height > size[1]:
        raise DataError(f"{name} has changed since it was shown. Scan the folder again.")


def _crop(image: Image.Image, frame: Frame, size: tuple[int, int]) -> Image.Image:
    """The frame of an image, or of a mask that covers an image of `size` as a whole."""
    across, down = image.width / size[0], image.height / size[1]
    left, top = round(frame.left * across), round(frame.top * down)
    right = max(left + 1, round((frame.left + frame.width) * across))
    bottom = max(top + 1, round((frame.top + frame.height) * down))
    return image.crop((left, top, right, bottom))
