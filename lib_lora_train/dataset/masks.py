"""Mask files: `name-mask.png` or `name_mask.png` says where the image `name` counts: white wholly, black not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from lib_lora_train.dataset.images import IMAGE_EXTENSIONS

MASK_SUFFIXES = ("-mask", "_mask")
"""What a mask file's name has behind its image's."""


def find_masks(files: Iterable[Path]) -> Mapping[str, Path]:
    """Image's name without ending → its mask, among the files of one folder; only where there is such an image."""
    images = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS]
    stems = {path.stem for path in images}
    found: dict[str, Path] = {}
    for path in sorted(images):
        owner = _owner(path.stem)
        if owner in stems:
            found.setdefault(owner, path)
    return found


def is_mask(path: Path, files: Collection[Path]) -> bool:
    """Whether a file is the mask of another one beside it."""
    owner = _owner(path.stem)
    return bool(owner) and any(
        other.stem == owner and other.parent == path.parent and other.suffix.lower() in IMAGE_EXTENSIONS for other in files
    )


def _owner(stem: str) -> str:
    """The image's name that a mask's name tells, "" for other names."""
    ending = next((ending for ending in MASK_SUFFIXES if stem.lower().endswith(ending)), "")
    return stem[: -len(ending)] if ending else ""
