"""Finds the folders that a concept trains on: the folder itself, or its sub-folders named like kohya's `N_words`.

Whatever is not read is named, with what to do about it: images outside those folders, deeper ones, folders without
permission, pipes. If there are no images, the message says where the nearest ones are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.folder_contents import FolderContents, is_named_for_kohya, scan_below, scan_folder
from lib_lora_train.dataset.folder_names import (
    is_originals_folder,
    join_names,
    looks_like_date,
    name_without_date,
    parse_kohya_name,
)
from lib_lora_train.dataset.images import CONVERT_ADVICE, CONVERTIBLE_EXTENSIONS, IMAGE_EXTENSIONS

_MAX_REPEATS = 10_000  # as for the setting
_SUSPICIOUS_REPEATS = 1000
UNREAD_ADVICE = "Move the images up, rename such folders to N_words, such as 10_cat, or add each as a concept."


@dataclass(frozen=True)
class DataFolder:
    """A folder whose images are trained on, before they are opened.

    `words` are used for missing captions; `plain_words` are those of kohya's tools, with the folder's underscores.
    """

    contents: FolderContents
    repeats: int
    words: str
    plain_words: str = ""

    @property
    def path(self) -> Path:
        """The folder."""
        return self.contents.folder


@dataclass(frozen=True)
class FoundFolders:
    """The folders of a concept, what was not read, and why the concept cannot be used ("" if it can)."""

    folders: tuple[DataFolder, ...] = ()
    problems: tuple[Problem, ...] = ()
    failure: str = ""


def scan_concept_folders(concept: Concept, others: Collection[Path] = ()) -> FoundFolders:
    """The folders of a concept. `others` are the resolved folders of all concepts, which are not named as unread."""
    root = user_path(concept.folder)
    failure = _why_unusable(concept.folder, root)
    if failure:
        return FoundFolders(failure=failure)
    contents = scan_folder(root)
    if contents.failure:
        return FoundFolders(failure=f"{root} cannot be read: {contents.failure}. {_PERMISSION_ADVICE}")
    below = list(scan_below(contents, others))
    named = [sub for sub in below if sub.folder.parent == root and is_named_for_kohya(sub.folder) and sub.images]
    if not named and not contents.images:
        return FoundFolders(failure=_no_images(contents, below))
    folders = [_named_folder(sub, concept) for sub in named] or [_plain_folder(contents, concept)]
    failures = [reason for folder in folders if (reason := _why_not_repeated(folder, concept, root))]
    if failures:
        return FoundFolders(failure="\n".join(failures))
    return FoundFolders(tuple(folders), tuple(_report_unread(contents, named, below, concept)))


def scan_repeats_remedy(concept: Concept) -> dict[str, int]:
    """What to set for a concept whose own folder is named by a date, which cannot be meant as repeats; else {}."""
    root = user_path(concept.folder)
    if concept.repeats or not name_without_date(root.resolve().name):
        return {}
    contents = scan_folder(root)
    is_plain = not any(is_named_for_kohya(path) and scan_folder(path).images for path in contents.subfolders)
    return {"repeats": 1} if is_plain and contents.images else {}


def resolve_folders(concepts: Iterable[Concept]) -> set[Path]:
    """The absolute paths of the concepts' folders, without links; those that cannot exist are left out."""
    found = set()
    for concept in concepts:
        with contextlib.suppress(OSError, ValueError):
            found.add(user_path(concept.folder).resolve())
    return found


# --- what a folder's name says ---------------------------------------------------------------------


def _named_folder(contents: FolderContents, concept: Concept) -> DataFolder:
    repeats, words = parse_kohya_name(contents.folder.name) or (1, "")
    plain_words = concept.class_word or contents.folder.name.partition("_")[2]
    return DataFolder(contents, repeats, concept.class_word or words, plain_words)


def _plain_folder(contents: FolderContents, concept: Concept) -> DataFolder:
    """The concept's folder itself. It may have a kohya name, but repeats in the settings override it."""
    repeats, words = parse_kohya_name(contents.folder.resolve().name) or (1, "")
    return DataFolder(contents, concept.repeats or repeats, concept.class_word or words, concept.class_word)


def _why_not_repeated(folder: DataFolder, concept: Concept, root: Path) -> str:
    """Why the number in a folder's name cannot be meant as repeats, with the right reading; "" if it can."""
    is_root = folder.path == root
    name = folder.path.resolve().name
    number, words = parse_kohya_name(name) or (1, "")
    is_date = looks_like_date(number)
    if (is_root and concept.repeats) or not (is_date or number > _MAX_REPEATS):
        return ""
    what = "That is probably a date" if is_date else f"At most {_MAX_REPEATS:,} are possible"
    better = name_without_date(name) or f"1_{words.replace(' ', '_') or 'images'}"
    other = "set its repeats to 1" if is_root else "enter this folder as a concept and set its repeats"
    other += "" if is_root or not is_date else ". Check images renames it with one click"
    return (
        f"{folder.path}: by its name, each image would be used {count(number, 'time')} per epoch. {what}: rename the "
        f"folder to {better}, or {other}."
    )


# --- what is not read ------------------------------------------------------------------------------


def _report_unread(
    root: FolderContents, named: Sequence[FolderContents], below: Sequence[FolderContents], concept: Concept
) -> Iterable[Problem]:
    def warn(where: Path, text: str) -> Problem:
        return Problem("warning", str(where), text)

    if named and root.images:
        text = (
            f"{count(len(root.images), 'image')} outside of the N_words sub-folders will not be read. Move all "
            "images into them."
        )
        yield warn(root.folder, text)
    if named and concept.repeats is not None:
        yield warn(root.folder, f"repeats {concept.repeats} is not used: the names of the sub-folders set them.")
    unread = unread_folders(root, named, below)
    if unread:
        total = sum(len(sub.images) for sub in unread)
        names = join_names([sub.folder.relative_to(root.folder).as_posix() for sub in unread])
        yield warn(root.folder, f"sub-folders not read: {names} ({count(total, 'image')}). {UNREAD_ADVICE}")
    for sub in below:
        if sub.failure:
            yield warn(sub.folder, f"cannot be read: {sub.failure}. {_PERMISSION_ADVICE}")
    for place in (root, *named):
        if place.special:
            names = join_names([path.name for path in place.special])
            text = f"not read, as they are not files (pipes, sockets, broken links): {names}."
            yield warn(place.folder, text)
    for number in (parse_kohya_name(sub.folder.name) for sub in named):
        if number and number[0] >= _SUSPICIOUS_REPEATS:
            yield warn(root.folder, f"uses images {count(number[0], 'time')} per epoch, by the name {number[0]}_….")


def unread_folders(
    root: FolderContents, named: Sequence[FolderContents], below: Iterable[FolderContents]
) -> list[FolderContents]:
    """Those of the folders `below` one that have images which are not read, as only the `named` ones are."""
    used = {root.folder, *(sub.folder for sub in named)}
    return [sub for sub in below if sub.images and sub.folder not in used and not _is_originals(sub, root)]


def _is_originals(sub: FolderContents, root: FolderContents) -> bool:
    """Whether these are originals that a repair has kept."""
    return any(map(is_originals_folder, sub.folder.relative_to(root.folder).parts))


# --- what cannot be used ---------------------------------------------------------------------------

_PERMISSION_ADVICE = "Change its permissions, or choose another folder."


def _why_unusable(given: str, folder: Path) -> str:
    """Why a concept's folder cannot be used, "" if it can."""
    if not given.strip():
        return "A concept has no folder. Enter the folder with its images."
    try:
        folder.stat()
    except FileNotFoundError:
        return f"{folder} does not exist. Check its spelling."
    except (OSError, ValueError) as error:
        return f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}. {_PERMISSION_ADVICE}"
    if not folder.is_dir():
        return f"{folder} is a file. Enter the folder that contains the images: {folder.parent}."
    return ""


def _no_images(root: FolderContents, below: Sequence[FolderContents]) -> str:
    """The message for a folder without images, with the folder to enter instead if there is one nearby."""
    found = [sub for sub in below if sub.images]
    parents = list(dict.fromkeys(sub.folder.parent for sub in found if is_named_for_kohya(sub.folder)))
    unreadable = [sub.folder.name for sub in below if sub.failure]
    if parents:
        inside = join_names([sub.folder.name for sub in found if sub.folder.parent == parents[0]])
        return f"{root.folder} contains no images, but {parents[0]} has them in {inside}. Enter that folder instead."
    if found:
        return _images_in_plain_folders(root.folder, found)
    if unreadable:
        names = join_names(unreadable)
        return f"{root.folder} contains no images that can be read; no permission for {names}. {_PERMISSION_ADVICE}"
    above = scan_folder(root.folder.absolute().parent)
    if above.images or any(scan_folder(path).images for path in filter(is_named_for_kohya, above.subfolders)):
        return f"{root.folder} contains no images, but the folder above it does. Enter {above.folder} instead."
    convertible = [path.name for path in root.other_files if path.suffix.lower() in CONVERTIBLE_EXTENSIONS]
    if convertible:
        return f"{root.folder} contains no images that training reads, only {join_names(convertible)}. {CONVERT_ADVICE}"
    kinds = ", ".join(extension.lstrip(".") for extension in IMAGE_EXTENSIONS)
    return f"{root.folder} contains no images ({kinds}). Add some or choose another folder."


def _images_in_plain_folders(root: Path, found: Sequence[FolderContents]) -> str:
    names = join_names([sub.folder.relative_to(root).as_posix() for sub in found])
    parent = found[0].folder.parent
    if parse_kohya_name(parent.name) and len(found) == 1:
        return (
            f"{root} contains no images, but {found[0].folder} does. Move them up into {parent}, whose name sets their "
            "repeats, or enter that folder."
        )
    if len(found) == 1:
        return f"{root} contains no images, but {found[0].folder} does. Enter that folder instead."
    return f"{root} contains no images, but these sub-folders do: {names}. {UNREAD_ADVICE}"
