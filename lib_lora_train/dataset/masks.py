"""Mask files: they weight the loss of an image, white fully, black not at all.

A mask is beside its image NAME, as `NAME-mask.png` or `NAME_mask.png` (OneTrainer: `NAME-masklabel.png`), or has the
same name in a sub-folder `mask` or `masks`. OneTrainer's `NAME-condlabel.png` is an input for other kinds of models: it
is not trained on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from lib_lora_train.dataset.images import IMAGE_EXTENSIONS

MASK_SUFFIXES = ("-mask", "_mask", "-masklabel")
"""What a mask's name appends to that of its image."""
_CONDITIONING_SUFFIXES = ("-condlabel",)
_MASK_FOLDERS = ("mask", "masks")


def find_masks(
    files: Iterable[Path], image_stems: Collection[str] | None = None, *, is_mask_folder: bool = False
) -> Mapping[str, Path]:
    """Image stem → its mask, among files of one folder. A mask without an image is left out.

    `image_stems` are the images' names if these are in another folder. In a mask folder, a mask may have the name of
    its image.
    """
    images = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS]
    stems = {path.stem for path in images} if image_stems is None else image_stems
    masks: dict[str, Path] = {}
    for path in sorted(images):
        owner = path.stem if is_mask_folder and path.stem in stems else _owner(path.stem, MASK_SUFFIXES)
        if owner in stems:
            masks.setdefault(owner, path)
    return masks


def find_conditioning_images(files: Collection[Path]) -> list[Path]:
    """The images among the files of one folder that belong to another of them as its conditioning image."""
    stems = {path.stem for path in files}
    return [path for path in files if _owner(path.stem, _CONDITIONING_SUFFIXES) in stems]


def is_mask_folder(folder: Path) -> bool:
    """Whether a sub-folder may contain the masks of the images beside it."""
    return folder.name.lower() in _MASK_FOLDERS


def _owner(stem: str, suffixes: tuple[str, ...]) -> str:
    """The stem of the image that a file belongs to, "" if its name has none of the suffixes."""
    suffix = next((suffix for suffix in suffixes if stem.lower().endswith(suffix)), "")
    return stem[: -len(suffix)] if suffix else ""
