"""What a folder contains: images, masks, other files and sub-folders. All lists of a data folder are made here.

Hidden entries (macOS's `._` files) are left out. Pipes and sockets are not files, whatever their names: opening one
would wait for ever.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.folder_names import is_originals_folder, natural_sort_key, parse_kohya_name
from lib_lora_train.dataset.images import IMAGE_EXTENSIONS
from lib_lora_train.dataset.masks import find_conditioning_images, find_masks, is_mask_folder

_MAX_DEPTH = 6  # folders below the one that was given
_MAX_FOLDERS = 2000


@dataclass(frozen=True)
class FolderContents:
    """The visible entries of one folder, each kind in natural order.

    `images` are those to look at, without masks; `masks` maps the stem of an image to its mask, which is beside
    it or in a mask folder. `files` are all regular files. `subfolders` leaves out the mask folders. `special` are
    entries that are neither file nor folder, such as pipes and broken links. `failure` is why the folder cannot be
    read, "" if it can.
    """

    folder: Path
    images: tuple[Path, ...] = ()
    masks: Mapping[str, Path] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    subfolders: tuple[Path, ...] = ()
    special: tuple[Path, ...] = ()
    failure: str = ""

    @property
    def other_files(self) -> tuple[Path, ...]:
        """The files that are neither images nor masks."""
        known = {*self.images, *self.masks.values()}
        return tuple(path for path in self.files if path not in known)


def scan_folder(folder: Path) -> FolderContents:
    """The contents of a folder; one that cannot be read is empty, with a `failure`."""
    try:
        files, folders, special = _scan_entries(folder)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        return FolderContents(folder, failure=getattr(error, "strerror", None) or str(error))
    image_files = [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS]
    stems = {path.stem for path in image_files}
    masks, mask_folders = dict(find_masks(image_files)), []
    for path in filter(is_mask_folder, folders):
        separate = find_masks(scan_folder(path).files, stems, is_mask_folder=True)
        if separate:
            mask_folders.append(path)
            masks = {**separate, **masks}
    labels = {*masks.values(), *find_conditioning_images(image_files)}
    return FolderContents(
        folder,
        images=tuple(path for path in image_files if path not in labels),
        masks=masks,
        files=tuple(files),
        subfolders=tuple(path for path in folders if path not in mask_folders),
        special=tuple(special),
    )


def _scan_entries(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """(files, folders, other entries) in natural order; OSError if the folder cannot be read."""
    files: list[Path] = []
    folders: list[Path] = []
    special: list[Path] = []
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in sorted(visible, key=lambda entry: natural_sort_key(entry.name)):
        try:
            kind = files if entry.is_file() else folders if entry.is_dir() else special
        except OSError:
            kind = special
        kind.append(folder / entry.name)
    return files, folders, special


def scan_data_folders(folder: Path) -> list[FolderContents]:
    """The contents of a data folder and of its `N_words` sub-folders; DataError if it cannot be read."""
    contents = scan_folder(folder)
    if contents.failure:
        raise DataError(f"{folder} cannot be read: {contents.failure}. Choose another folder.")
    return [contents, *map(scan_folder, filter(is_named_for_kohya, contents.subfolders))]


def is_named_for_kohya(folder: Path) -> bool:
    """Whether a sub-folder is read because of its name, `N_words`."""
    return parse_kohya_name(folder.name) is not None and not is_originals_folder(folder.name)


def scan_below(contents: FolderContents, skipped: Collection[Path] = ()) -> Iterator[FolderContents]:
    """Every folder below one, whatever its name, except the resolved paths `skipped` and what is below those.

    A link to a folder that was visited already is not followed, and the search ends after some thousand folders.
    """
    seen = {contents.folder.resolve(), *skipped}
    pending = [(path, 1) for path in reversed(contents.subfolders)]
    while pending and len(seen) < _MAX_FOLDERS:
        path, depth = pending.pop()
        place = path.resolve()
        if place in seen:
            continue
        seen.add(place)
        below = scan_folder(path)
        yield below
        if depth < _MAX_DEPTH:
            pending += [(sub, depth + 1) for sub in reversed(below.subfolders)]
