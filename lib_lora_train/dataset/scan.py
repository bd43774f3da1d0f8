"""Scans folders into a dataset: the images, their repeats and their captions."""

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
from lib_lora_train.dataset.images import (
    IMAGE_EXTENSIONS,
    SUPPORTED_FORMATS_ADVICE,
    UNSUPPORTED_EXTENSIONS,
    ImageFile,
    read_image_file,
)
from lib_lora_train.dataset.masks import find_masks

_MAX_THREADS = 8
_SUSPICIOUS_REPEATS = 1000  # probably a year
_SUB_FOLDER_ADVICE = "Rename them to N_words, such as 10_cat, or add each as a concept."


@dataclass(frozen=True)
class Item:
    """An image with its caption; `concept` is an index into `Dataset.concepts`.

    `lines` is set if the caption file has several: each is a caption itself, and `caption` is all of them joined.
    `mask` is the image itself if its alpha channel is the mask. `resolution` is 0 for that of the run.
    """

    image: ImageFile
    caption: str
    concept: int
    lines: tuple[str, ...] = ()
    mask: ImageFile | None = None
    resolution: int = 0


@dataclass(frozen=True)
class ScannedConcept:
    """One folder with images. Names need not be unique: two parents may both have a `10_cat`.

    `settings` is the concept in the config that led to this folder.
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
    """All usable images, folder by folder in natural order; `problems` says what was skipped or is odd, and why."""

    items: tuple[Item, ...]
    concepts: tuple[ScannedConcept, ...]
    problems: tuple[Problem, ...]


def scan_dataset(concepts: Sequence[Concept], caption_extension: str, separator: str = "|||") -> Dataset:
    """The images and captions in the concepts' folders; the same files give the same dataset on every machine.

    The trigger word goes before the first `separator` of a caption. DataError if folders are missing or contain no
    readable image, with all such folders in one message.
    """
    if not concepts:
        raise DataError("No folder with images is given. Add one to train on.")
    scan = _Scan(caption_extension, separator)
    for concept in concepts:
        scan.add(concept)
    if scan.failures:
        raise DataError("\n".join(scan.failures))
    return Dataset(tuple(scan.items), tuple(scan.concepts), (*scan.problems, *_report_duplicates(scan)))


def read_dataset(config: TrainConfig) -> Dataset:
    """The dataset of a run; DataError as for `scan_dataset`."""
    return scan_dataset(config.concepts, config.caption_extension, config.keep_tokens_separator)


@dataclass(frozen=True)
class _Folder:
    """A folder with images directly in it, before they are opened. `words` are used for missing captions."""

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
        """Scan one concept's folder and the sub-folders that belong to it."""
        root = user_path(concept.folder)
        reason = _why_unusable(concept.folder, root)
        if reason:
            self.failures.append(reason)
            return
        if root.resolve() in self._seen:
            self._warn(
                root,
                "is given twice, so its images are trained on twice. Remove one entry, or raise the repeats instead.",
            )
        self._seen.add(root.resolve())
        before = len(self.items)
        for folder in self._folders(root, concept):
            self._add_folder(folder, concept)
        if len(self.items) == before:
            self.failures.append(_no_images(root))

    def _warn(self, where: Path, message: str) -> None:
        self.problems.append(Problem("warning", str(where), message))

    def _hint(self, where: Path, message: str) -> None:
        self.problems.append(Problem("hint", str(where), message))

    # --- which folders --------------------------------------------------------------------------
    def _folders(self, root: Path, concept: Concept) -> list[_Folder]:
        """The kohya sub-folders if there are any, else the folder itself; what is ignored is reported."""
        subfolders = {path: _images(path) for path in _listing(root) if path.is_dir()}
        named = {path: files for path, files in subfolders.items() if parse_kohya_name(path.name)}
        others = [path.name for path, files in subfolders.items() if files and path not in named]
        own = _images(root)
        if any(named.values()):
            if own:
                self._warn(
                    root,
                    f"{len(own)} images outside the N_words sub-folders are not read: move them into one of these.",
                )
            if concept.repeats is not None:
                self._warn(root, f"repeats {concept.repeats} is not used: the names of the sub-folders set them.")
            folders = [self._named(path, files, concept) for path, files in named.items() if files]
        else:
            folders = [self._plain(root, own, concept)] if own else []
        if folders and others:
            names = join_names(others)
            self._warn(root, f"sub-folders not read: {names}. {_SUB_FOLDER_ADVICE}")
        return folders

    def _named(self, path: Path, files: tuple[Path, ...], concept: Concept) -> _Folder:
        repeats, words = parse_kohya_name(path.name) or (1, "")
        if repeats >= _SUSPICIOUS_REPEATS:
            self._warn(path, f"has {repeats} repeats, according to its name. Rename the folder if that is a date.")
        return _Folder(path, repeats, concept.class_word or words, files)

    def _plain(self, path: Path, files: tuple[Path, ...], concept: Concept) -> _Folder:
        """The folder itself. It may have a kohya name, but repeats in the settings override it."""
        if concept.repeats is None and parse_kohya_name(path.resolve().name):
            return self._named(path.resolve(), files, concept)
        words = (parse_kohya_name(path.resolve().name) or (1, ""))[1]
        return _Folder(path, concept.repeats or 1, concept.class_word or words, files)

    # --- their contents ------------------------------------------------------------------------
    def _add_folder(self, folder: _Folder, concept: Concept) -> None:
        trigger = "" if concept.is_regularisation else concept.trigger.strip()
        images = self._readable(folder.files, detect_alpha=_needs_alpha(concept))
        self._report_unsupported(folder.path)
        if not images:
            self._warn(folder.path, "none of its images can be read; the folder is skipped.")
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
        """Image path → its mask, if the concept uses masks."""
        files = find_masks(_listing(folder.path))
        if not concept.use_masks:
            if files:
                names = join_names([path.name for path in files.values()])
                self._hint(folder.path, f"{len(files)} masks are not used ({names}). Turn on use_masks to use them.")
            return {}
        readable = {mask.path: mask for mask in self._readable(list(files.values()))}
        found = {stem: readable[path] for stem, path in files.items() if path in readable}
        masks = {image.path: found.get(image.path.stem, image if image.has_alpha else None) for image in images}
        without = [path.name for path, mask in masks.items() if mask is None]
        if without:
            self._hint(
                folder.path,
                f"{len(without)} images have no mask ({join_names(without)}): their whole area is trained on.",
            )
        return {path: mask for path, mask in masks.items() if mask is not None}

    def _readable(self, files: Sequence[Path], *, detect_alpha: bool = False) -> list[ImageFile]:
        """The images that decode, in the order of `files`; others are reported."""
        images = []
        for path, found in zip(files, _read_all(files, detect_alpha), strict=True):
            if isinstance(found, ImageFile):
                images.append(found)
            else:
                self._warn(path, f"skipped: {found}")
        return images

    def _report_unsupported(self, folder: Path) -> None:
        names = [path.name for path in _listing(folder) if path.suffix.lower() in UNSUPPORTED_EXTENSIONS]
        if names:
            self._warn(folder, f"not read: {join_names(names)}. {SUPPORTED_FORMATS_ADVICE}")

    def _captions(
        self, folder: _Folder, images: Sequence[ImageFile], trigger: str, *, use_files: bool
    ) -> list[CaptionText]:
        if not use_files:
            fallbacks = (CaptionText(_fallback_caption(image.path, folder, trigger)) for image in images)
            return [self._put_trigger_first(caption, trigger) for caption in fallbacks]
        files = index_by_extension(_listing(folder.path))
        captions: list[CaptionText] = []
        without: list[str] = []
        empty: list[str] = []
        for image in images:
            path = find_caption_file(image.path, self.caption_extension, files)
            caption = CaptionText("") if path is None else self._caption(path)
            if not caption.joined:
                (without if path is None else empty).append(image.path.name)
                caption = CaptionText(_fallback_caption(image.path, folder, trigger))
            captions.append(self._put_trigger_first(caption, trigger))
        used = {image.path.name: caption.joined for image, caption in zip(images, captions, strict=True)}
        self._report_fallbacks(folder.path, "no caption", without, used)
        self._report_fallbacks(folder.path, "an empty caption file", empty, used)
        return captions

    def _put_trigger_first(self, caption: CaptionText, trigger: str) -> CaptionText:
        lines = caption.lines if len(caption.lines) > 1 else ()
        joined, *separate = (put_trigger_first(text, trigger, self.separator) for text in (caption.joined, *lines))
        return CaptionText(joined, tuple(separate))

    def _caption(self, path: Path) -> CaptionText:
        try:
            caption, problem = read_caption_file(path)
        except DataError as error:
            self._warn(path, f"caption ignored: {error}")
            return CaptionText("")
        if problem:
            self.problems.append(problem)
        return caption

    def _report_fallbacks(self, folder: Path, what: str, names: Sequence[str], captions: Mapping[str, str]) -> None:
        if not names:
            return
        used = list(dict.fromkeys(repr(captions[name]) for name in names))
        verb = "image has" if len(names) == 1 else "images have"
        message = f"{len(names)} {verb} {what} ({join_names(names)}); used instead: {join_names(used)}."
        self.problems.append(Problem("hint", str(folder), message))


def _why_unusable(given: str, folder: Path) -> str:
    """Why a concept's folder cannot be used, "" if it can."""
    if not given.strip():
        return "A concept has no folder. Enter the folder with its images."
    if not folder.exists():
        return f"{folder} does not exist. Check its spelling."
    if not folder.is_dir():
        return f"{folder} is a file. Enter the folder that contains the images."
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
        return f"{root} contains no images, but these sub-folders do: {join_names(inside)}. {_SUB_FOLDER_ADVICE}"
    kinds = ", ".join(extension.lstrip(".") for extension in IMAGE_EXTENSIONS)
    return f"{root} contains no images ({kinds}). Add some or choose another folder."


def _listing(folder: Path) -> list[Path]:
    """The entries of a folder in natural order, without hidden ones such as macOS's `._` files."""
    try:
        paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []
    return sorted(paths, key=lambda path: natural_sort_key(path.name))


def _images(folder: Path) -> tuple[Path, ...]:
    """The images in a folder, without masks."""
    files = [path for path in _listing(folder) if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file()]
    masks = set(find_masks(files).values())
    return tuple(path for path in files if path not in masks)


def _needs_alpha(concept: Concept) -> bool:
    """Whether it matters which images are transparent; by default all are flattened on white."""
    return concept.use_masks or concept.tag_background or concept.alpha_background.strip().lower() not in ("", "white")


def _read_all(files: Iterable[Path], detect_alpha: bool) -> Iterator[ImageFile | DataError]:
    """Each file as an image or an error, in order. Several threads: Pillow and hashing release the GIL."""

    def read(path: Path) -> ImageFile | DataError:
        try:
            return read_image_file(path, detect_alpha=detect_alpha)
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(_MAX_THREADS, (os.cpu_count() or 1) + 1)) as pool:
        yield from pool.map(read, files)


def _fallback_caption(image: Path, folder: _Folder, trigger: str) -> str:
    """The caption of an image that has none: trigger and class word, else the file name, else the folder name."""
    words = folder.words
    if trigger and not has_word(words, trigger):
        words = f"{trigger} {words}".strip()
    own_name = "" if parse_kohya_name(folder.path.name) else folder_name_to_words(folder.path.name)
    return words or file_name_to_words(image.stem) or own_name


def _report_duplicates(scan: _Scan) -> list[Problem]:
    """A hint for every image that duplicates another under a different name."""
    first: dict[str, Path] = {}
    problems = []
    for item in scan.items:
        original = first.setdefault(item.image.content_hash, item.image.path)
        if original != item.image.path:
            problems.append(Problem("hint", str(item.image.path), f"is the same image as {original}."))
    return problems
