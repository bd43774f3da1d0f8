"""Folders to a dataset: which images there are, how often each is shown, and what its caption says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError, Problem
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.captions import (
    CaptionText,
    find_caption_file,
    has_word,
    index_by_extension,
    put_trigger_first,
    read_caption_file,
)
from lib_lora_train.dataset.folder_names import (
    file_name_to_words,
    folder_name_to_words,
    join_names,
    natural_sort_key,
    parse_kohya_name,
)
from lib_lora_train.dataset.images import IMAGE_EXTENSIONS, ImageFile, read_image_file
from lib_lora_train.dataset.masks import find_masks

_UNREAD_ENDINGS = (".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".psd", ".jfif", ".tga")
_MOST_READERS = 8
_ODD_REPEATS = 1000


@dataclass(frozen=True)
class Item:
    """An image with its caption; `concept` is an index into `Dataset.concepts`.

    `lines` are there where the caption file has several; each is a caption of its own, `caption` is all of them.
    `mask` is the image itself where its alpha channel is the mask; `resolution` is 0 where it is the run's.
    """

    image: ImageFile
    caption: str
    concept: int
    lines: tuple[str, ...] = ()
    mask: ImageFile | None = None
    resolution: int = 0


@dataclass(frozen=True)
class ScannedConcept:
    """One folder that holds images. Names need not be unique: two parents may both have a `10_cat`.

    `settings` are those of the concept that the folder was found by.
    """

    name: str
    folder: Path
    repeats: int
    trigger: str
    is_regularisation: bool
    image_count: int
    settings: Concept = field(default_factory=Concept)


@dataclass(frozen=True)
class Dataset:
    """Every usable image, in natural order folder by folder; `skipped` tells what was left out or is odd, and why."""

    items: tuple[Item, ...]
    concepts: tuple[ScannedConcept, ...]
    problems: tuple[Problem, ...]


def scan_dataset(concepts: Sequence[Concept], caption_extension: str, separator: str = "|||") -> Dataset:
    """The images and captions in the concepts' folders, the same for the same files on every machine.

    Before the first `separator` of a caption the trigger has its place. DataError, naming every such folder at once,
    when one is missing or holds no image that can be read.
    """
    if not concepts:
        raise DataError("No folder with images is given. Name one to train on.")
    scan = _Scan(caption_extension, separator)
    for concept in concepts:
        scan.add(concept)
    if scan.failures:
        raise DataError("\n".join(scan.failures))
    return Dataset(tuple(scan.items), tuple(scan.concepts), (*scan.problems, *_repeated_images(scan)))


def read_dataset(config: TrainConfig) -> Dataset:
    """The dataset of a run; see `scan_dataset`."""
    return scan_dataset(config.concepts, config.caption_extension, config.keep_tokens_separator)


@dataclass(frozen=True)
class _Folder:
    """A folder with images directly in it, before they are opened. `words` stand in for missing captions."""

    path: Path
    repeats: int
    words: str
    files: tuple[Path, ...]


class _Scan:
    """What is collected on the way through the folders."""

    def __init__(self, caption_extension: str, separator: str) -> None:
        self.caption_extension = caption_extension
        self.separator = separator
        self.items: list[Item] = []
        self.concepts: list[ScannedConcept] = []
        self.problems: list[Problem] = []
        self.failures: list[str] = []
        self._seen: set[Path] = set()

    def add(self, concept: Concept) -> None:
        """Read one concept's folder and the sub-folders that belong to it."""
        root = user_path(concept.folder)
        reason = _unusable(concept.folder, root)
        if reason:
            self.failures.append(reason)
            return
        if root.resolve() in self._seen:
            self._warn(root, "is given twice; its images count double. Remove one entry or raise the repeats.")
        self._seen.add(root.resolve())
        before = len(self.items)
        for folder in self._folders(root, concept):
            self._read(folder, concept)
        if len(self.items) == before:
            self.failures.append(_no_images(root))

    def _warn(self, where: Path, message: str) -> None:
        self.problems.append(Problem("warning", str(where), message))

    def _hint(self, where: Path, message: str) -> None:
        self.problems.append(Problem("hint", str(where), message))

    # --- which folders --------------------------------------------------------------------------
    def _folders(self, root: Path, concept: Concept) -> list[_Folder]:
        """The kohya sub-folders if there are any, else the folder itself; what is passed over is reported."""
        subfolders = {path: _images(path) for path in _listing(root) if path.is_dir()}
        named = {path: files for path, files in subfolders.items() if parse_kohya_name(path.name)}
        others = [path.name for path, files in subfolders.items() if files and path not in named]
        own = _images(root)
        if any(named.values()):
            if own:
                self._warn(root, f"{len(own)} images beside the N_words sub-folders are not read: put them into one.")
            if concept.repeats is not None:
                self._warn(root, f"repeats {concept.repeats} is not used: the sub-folders' names give their own.")
            folders = [self._named(path, files, concept) for path, files in named.items() if files]
        else:
            folders = [self._plain(root, own, concept)] if own else []
        if folders and others:
            names = join_names(others)
            self._warn(root, f"sub-folders not read: {names}. Name them N_words (10_cat) or give them as concepts.")
        return folders

    def _named(self, path: Path, files: tuple[Path, ...], concept: Concept) -> _Folder:
        repeats, words = parse_kohya_name(path.name) or (1, "")
        if repeats >= _ODD_REPEATS:
            self._warn(path, f"is shown {repeats} times per epoch, as its name says. Rename it if that was a date.")
        return _Folder(path, repeats, concept.class_word or words, files)

    def _plain(self, path: Path, files: tuple[Path, ...], concept: Concept) -> _Folder:
        """The folder itself; its own name may be kohya's, and repeats given in the settings count more."""
        if concept.repeats is None and parse_kohya_name(path.resolve().name):
            return self._named(path.resolve(), files, concept)
        words = (parse_kohya_name(path.resolve().name) or (1, ""))[1]
        return _Folder(path, concept.repeats or 1, concept.class_word or words, files)

    # --- what is in them ------------------------------------------------------------------------
    def _read(self, folder: _Folder, concept: Concept) -> None:
        trigger = "" if concept.is_regularisation else concept.trigger.strip()
        images = self._readable(folder.files, detect_alpha=_needs_alpha(concept))
        self._report_unread(folder.path)
        if not images:
            self._warn(folder.path, "none of its images can be read; the folder is left out.")
            return
        captions = self._captions(folder, images, trigger, use_files=not concept.only_class_word)
        number = len(self.concepts)
        masks = self._masks(folder, images, concept)
        self.items += [
            Item(image, caption.joined, number, caption.lines, masks.get(image.path))
            for image, caption in zip(images, captions, strict=True)
        ]
        name = folder.path.name or str(folder.path)
        self.concepts.append(
            ScannedConcept(name, folder.path, folder.repeats, trigger, concept.is_regularisation, len(images), concept)
        )

    def _masks(self, folder: _Folder, images: Sequence[ImageFile], concept: Concept) -> dict[Path, ImageFile]:
        """Image's path → its mask, for the images that have one and a concept that wants them."""
        files = find_masks(_listing(folder.path))
        if not concept.use_masks:
            if files:
                names = join_names([path.name for path in files.values()])
                self._hint(
                    folder.path, f"{len(files)} masks are not used ({names}). Switch on use_masks if they count."
                )
            return {}
        readable = {mask.path: mask for mask in self._readable(list(files.values()))}
        found = {stem: readable[path] for stem, path in files.items() if path in readable}
        masks = {image.path: found.get(image.path.stem, image if image.has_alpha else None) for image in images}
        without = [path.name for path, mask in masks.items() if mask is None]
        if without:
            self._hint(folder.path, f"{len(without)} images have no mask ({join_names(without)}); they count wholly.")
        return {path: mask for path, mask in masks.items() if mask is not None}

    def _readable(self, files: Sequence[Path], *, detect_alpha: bool = False) -> list[ImageFile]:
        """The images that decode, in the order of `files`; the others are reported."""
        images = []
        for path, found in zip(files, _read_all(files, detect_alpha), strict=True):
            if isinstance(found, ImageFile):
                images.append(found)
            else:
                self._warn(path, f"left out: {found}")
        return images

    def _report_unread(self, folder: Path) -> None:
        names = [path.name for path in _listing(folder) if path.suffix.lower() in _UNREAD_ENDINGS]
        if names:
            self._warn(folder, f"not read: {join_names(names)}. Save them as PNG, JPEG or WebP.")

    def _captions(
        self, folder: _Folder, images: Sequence[ImageFile], trigger: str, *, use_files: bool
    ) -> list[CaptionText]:
        if not use_files:
            stand_ins = (CaptionText(_stand_in(image.path, folder, trigger)) for image in images)
            return [self._with_trigger(caption, trigger) for caption in stand_ins]
        beside = index_by_extension(_listing(folder.path))
        captions: list[CaptionText] = []
        without: list[str] = []
        empty: list[str] = []
        for image in images:
            path = find_caption_file(image.path, self.caption_extension, beside)
            caption = CaptionText("") if path is None else self._caption(path)
            if not caption.joined:
                (without if path is None else empty).append(image.path.name)
                caption = CaptionText(_stand_in(image.path, folder, trigger))
            captions.append(self._with_trigger(caption, trigger))
        instead = {image.path.name: caption.joined for image, caption in zip(images, captions, strict=True)}
        self._report_stand_ins(folder.path, "no caption", without, instead)
        self._report_stand_ins(folder.path, "an empty caption file", empty, instead)
        return captions

    def _with_trigger(self, caption: CaptionText, trigger: str) -> CaptionText:
        lines = caption.lines if len(caption.lines) > 1 else ()
        joined, *separate = (put_trigger_first(text, trigger, self.separator) for text in (caption.joined, *lines))
        return CaptionText(joined, tuple(separate))

    def _caption(self, path: Path) -> CaptionText:
        try:
            caption, problem = read_caption_file(path)
        except DataError as error:
            self._warn(path, f"left out: {error}")
            return CaptionText("")
        if problem:
            self.problems.append(problem)
        return caption

    def _report_stand_ins(self, folder: Path, what: str, names: Sequence[str], captions: Mapping[str, str]) -> None:
        if not names:
            return
        used = list(dict.fromkeys(repr(captions[name]) for name in names))
        verb = "image has" if len(names) == 1 else "images have"
        message = f"{len(names)} {verb} {what} ({join_names(names)}); used instead: {join_names(used)}."
        self.problems.append(Problem("hint", str(folder), message))


def _unusable(given: str, folder: Path) -> str:
    """Why a concept's folder cannot be read, "" when it can."""
    if not given.strip():
        return "A concept has no folder. Name the folder with its images."
    if not folder.exists():
        return f"{folder} does not exist. Check the spelling of the folder."
    if not folder.is_dir():
        return f"{folder} is a file. Give the folder that holds the images."
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror or error}."
    return ""


def _no_images(root: Path) -> str:
    inside = [path.name for path in _listing(root) if path.is_dir() and _images(path)]
    broken = [path.name for path in _images(root)]
    if broken:
        return f"{root}: none of its images can be read ({join_names(broken)})."
    if inside:
        return (
            f"{root} holds no images itself, but sub-folders with some: {join_names(inside)}. Name them N_words (10_cat) "
            "or give each as a concept."
        )
    kinds = ", ".join(ending.lstrip(".") for ending in IMAGE_EXTENSIONS)
    return f"{root} holds no images ({kinds}). Put some in or choose another folder."


def _listing(folder: Path) -> list[Path]:
    """What lies in a folder, in natural order; hidden files, macOS's `._` doubles among them, are passed over."""
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
    return sorted(paths, key=lambda path: natural_sort_key(path.name))


def _images(folder: Path) -> tuple[Path, ...]:
    """The images in a folder, without those that are masks of others."""
    files = [path for path in _listing(folder) if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file()]
    masks = set(find_masks(files).values())
    return tuple(path for path in files if path not in masks)


def _needs_alpha(concept: Concept) -> bool:
    """Whether it matters which images are transparent; by default they simply lie on white."""
    return concept.use_masks or concept.tag_background or concept.alpha_background.strip().lower() not in ("", "white")


def _read_all(files: Iterable[Path], detect_alpha: bool) -> Iterator[ImageFile | DataError]:
    """Each file as an image, or why it is none, in order; several at once, as Pillow and hashing free the lock."""

    def read(path: Path) -> ImageFile | DataError:
        try:
            return read_image_file(path, detect_alpha=detect_alpha)
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(_MOST_READERS, (os.cpu_count() or 1) + 1)) as readers:
        yield from readers.map(read, files)


def _stand_in(image: Path, folder: _Folder, trigger: str) -> str:
    """The caption of an image that has none: trigger and class word, else the file's or the folder's name."""
    words = folder.words
    if trigger and not has_word(words, trigger):
        words = f"{trigger} {words}".strip()
    own_name = "" if parse_kohya_name(folder.path.name) else folder_name_to_words(folder.path.name)
    return words or file_name_to_words(image.stem) or own_name


def _repeated_images(scan: _Scan) -> list[Problem]:
    """A hint for every image that is there more than once under different names."""
    first: dict[str, Path] = {}
    problems = []
    for item in scan.items:
        original = first.setdefault(item.image.content_hash, item.image.path)
        if original != item.image.path:
            problems.append(Problem("hint", str(item.image.path), f"is the same image as {original}."))
    return problems
