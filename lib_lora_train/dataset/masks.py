"""Mask files: `NAME-mask.png` or `NAME_mask.png` weights the loss of the image NAME, white fully, black not at all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from lib_lora_train.dataset.images import IMAGE_EXTENSIONS

MASK_SUFFIXES = ("-mask", "_mask")
"""What a mask's name appends to that of its image."""


def find_masks(files: Iterable[Path]) -> Mapping[str, Path]:
    """Image stem → its mask, among the files of one folder. A mask without an image is left out."""
    images = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS]
    stems = {path.stem for path in images}
    masks: dict[str, Path] = {}
    for path in sorted(images):
        owner = _image_stem(path.stem)
        if owner in stems:
            masks.setdefault(owner, path)
    return masks


def is_mask(path: Path, files: Collection[Path]) -> bool:
    """Whether a file is the mask of an image in the same folder."""
    owner = _image_stem(path.stem)
    return bool(owner) and any(
        other.stem == owner and other.parent == path.parent and other.suffix.lower() in IMAGE_EXTENSIONS
        for other in files
    )


def _image_stem(stem: str) -> str:
    """The stem of the image that a mask belongs to, "" if the name is not a mask's."""
    suffix = next((suffix for suffix in MASK_SUFFIXES if stem.lower().endswith(suffix)), "")
    return stem[: -len(suffix)] if suffix else ""
