"""Scans folders into a dataset: the images, their repeats and their captions."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError, Problem
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.wording import count, without_name
from lib_lora_train.core.words import has_word
from lib_lora_train.dataset.caption_lists import CaptionList, caption_list_path, read_caption_list
from lib_lora_train.dataset.captions import (
    CaptionText,
    find_caption_file,
    index_by_extension,
    list_caption_extensions,
    put_trigger_first,
    read_caption_file,
)
from lib_lora_train.dataset.data_folders import DataFolder, resolve_folders, scan_concept_folders
from lib_lora_train.dataset.folder_names import (
    file_name_to_words,
    folder_name_to_words,
    join_names,
    parse_kohya_name,
)
from lib_lora_train.dataset.images import ImageFile, read_image_file
from lib_lora_train.dataset.unread_files import report_unread_files

_MAX_THREADS = 8


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


def scan_dataset(
    concepts: Sequence[Concept], caption_extension: str, separator: str = "|||", missing: str = "words"
) -> Dataset:
    """The images and captions in the concepts' folders; the same files give the same dataset on every machine.

    The trigger word goes before the first `separator` of a caption; `missing` is the setting `missing_captions`.
    DataError if folders are missing or contain no readable image, with all such folders in one message.
    """
    if not concepts:
        raise DataError("No folder with images is given. Add one to train on.")
    scan = _Scan(caption_extension, separator, missing)
    given = resolve_folders(concepts)
    for concept in concepts:
        scan.add(concept, given)
    if scan.failures:
        raise DataError("\n".join(scan.failures))
    return Dataset(tuple(scan.items), tuple(scan.concepts), (*scan.problems, *_report_duplicates(scan)))


def read_dataset(config: TrainConfig) -> Dataset:
    """The dataset of a run; DataError as for `scan_dataset`."""
    return scan_dataset(*reading_settings(config))


def reading_settings(config: TrainConfig) -> tuple[tuple[Concept, ...], str, str, str]:
    """The settings that a dataset depends on, as `scan_dataset` takes them."""
    return config.concepts, config.caption_extension, config.keep_tokens_separator, config.missing_captions


class _Scan:
    """What is collected on the way through the folders."""

    def __init__(self, caption_extension: str, separator: str, missing: str) -> None:
        self.caption_extension = caption_extension
        self.separator = separator
        self.uses_folder_name = missing == "folder name"
        self.items: list[Item] = []
        self.concepts: list[ScannedConcept] = []
        self.problems: list[Problem] = []
        self.failures: list[str] = []
        self._seen: set[Path] = set()
        self._unreadable: list[str] = []

    def add(self, concept: Concept, others: Collection[Path] = ()) -> None:
        """Scan one concept's folder and the sub-folders that belong to it."""
        found = scan_concept_folders(concept, others)
        if found.failure:
            self.failures.append(found.failure)
            return
        root = user_path(concept.folder)
        try:
            listed = read_caption_list(caption_list_path(concept.caption_file, root)) if concept.caption_file else None
        except DataError as error:
            self.failures.append(str(error))
            return
        if root.resolve() in self._seen:
            self._warn(
                root,
                "is given twice, so its images are trained on twice. Remove one entry, or raise the repeats instead.",
            )
        self._seen.add(root.resolve())
        self.problems += found.problems
        before, unreadable = len(self.items), len(self._unreadable)
        for folder in found.folders:
            self._add_folder(folder, concept, listed)
        if len(self.items) == before:
            names = join_names([path.name for folder in found.folders for path in folder.contents.images])
            reason = "".join(self._unreadable[unreadable : unreadable + 1])
            self.failures.append(f"{root}: none of its images can be read ({names}). {reason}")

    def _warn(self, where: Path, message: str) -> None:
        self.problems.append(Problem("warning", str(where), message))

    def _hint(self, where: Path, message: str) -> None:
        self.problems.append(Problem("hint", str(where), message))

    def _add_folder(self, folder: DataFolder, concept: Concept, listed: CaptionList | None) -> None:
        trigger = "" if concept.is_regularisation else concept.trigger.strip()
        known = self._listed_captions(folder, concept, listed)
        files = folder.contents.images if known is None else list(known)
        images = self._readable(files, detect_alpha=_needs_alpha(concept))
        if not images:
            self._warn(folder.path, "none of its images can be read; the folder is skipped.")
            return
        captions = self._captions(folder, images, trigger, concept=concept, listed=known)
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

    def _masks(self, folder: DataFolder, images: Sequence[ImageFile], concept: Concept) -> dict[Path, ImageFile]:
        """Image path → its mask, if the concept uses masks."""
        files = folder.contents.masks
        if not concept.use_masks:
            if files:
                names = join_names([path.name for path in files.values()])
                self._hint(
                    folder.path,
                    f"{count(len(files), 'mask is', 'masks are')} not used ({names}). Turn on use_masks to use them.",
                )
            return {}
        readable = {mask.path: mask for mask in self._readable(list(files.values()))}
        found = {stem: readable[path] for stem, path in files.items() if path in readable}
        masks = {image.path: found.get(image.path.stem, image if image.has_alpha else None) for image in images}
        without = [path.name for path, mask in masks.items() if mask is None]
        if without:
            self._hint(
                folder.path,
                f"{count(len(without), 'image has', 'images have')} no mask ({join_names(without)}), so all is "
                "trained on.",
            )
        return {path: mask for path, mask in masks.items() if mask is not None}

    def _readable(self, files: Sequence[Path], *, detect_alpha: bool = False) -> list[ImageFile]:
        """The images that decode, in the order of `files`; others are reported."""
        images = []
        for path, found in zip(files, _read_all(files, detect_alpha), strict=True):
            if isinstance(found, ImageFile):
                images.append(found)
            else:
                self._warn(path, f"skipped: {without_name(str(found), str(path))}")
                self._unreadable.append(str(found))
        return images

    def _listed_captions(
        self, folder: DataFolder, concept: Concept, listed: CaptionList | None
    ) -> dict[Path, CaptionText] | None:
        """The folder's images with their captions in the concept's list; None without a list."""
        if listed is None:
            return None
        root = user_path(concept.folder)
        found = {path: listed.find(path, root) for path in folder.contents.images}
        unlisted = [path.name for path, caption in found.items() if caption is None]
        if unlisted:
            images = count(len(unlisted), "image is", "images are")
            self._warn(folder.path, f"{images} not used, as {listed.path.name} has none of {join_names(unlisted)}.")
        return {path: caption for path, caption in found.items() if caption is not None}

    def _captions(
        self,
        folder: DataFolder,
        images: Sequence[ImageFile],
        trigger: str,
        *,
        concept: Concept,
        listed: Mapping[Path, CaptionText] | None,
    ) -> list[CaptionText]:
        files = index_by_extension(folder.contents.other_files)
        read = self._caption_files(folder, files)
        if concept.caption_file:
            read.add(caption_list_path(concept.caption_file, user_path(concept.folder)))
        self.problems += report_unread_files(folder.contents, read, self.caption_extension)
        if concept.only_class_word:
            fallbacks = (CaptionText(self._fallback(image.path, folder, trigger)) for image in images)
            return [self._put_trigger_first(caption, trigger) for caption in fallbacks]
        captions: list[CaptionText] = []
        without: list[str] = []
        empty: list[str] = []
        for image in images:
            path = None if listed is not None else find_caption_file(image.path, self.caption_extension, files)
            given = listed.get(image.path) if listed is not None else None
            caption = given or (CaptionText("") if path is None else self._caption(path))
            if not caption.joined:
                (without if path is None else empty).append(image.path.name)
                caption = CaptionText(self._fallback(image.path, folder, trigger))
            captions.append(self._put_trigger_first(caption, trigger))
        used = {image.path.name: caption.joined for image, caption in zip(images, captions, strict=True)}
        self._report_fallbacks(folder.path, "no caption", without, used)
        self._report_fallbacks(folder.path, "an empty caption file", empty, used)
        return captions

    def _caption_files(self, folder: DataFolder, files: Mapping[tuple[str, str], Path]) -> set[Path]:
        """The files that are captions of an image, including those that another ending takes precedence over."""
        endings = list_caption_extensions(self.caption_extension)
        keys = ((image.stem, ending) for image in folder.contents.images for ending in endings)
        return {files[key] for key in keys if key in files}

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

    def _fallback(self, image: Path, folder: DataFolder, trigger: str) -> str:
        """The caption of an image that has none."""
        return folder.plain_words if self.uses_folder_name else _fallback_caption(image, folder, trigger)

    def _report_fallbacks(self, folder: Path, what: str, names: Sequence[str], captions: Mapping[str, str]) -> None:
        if not names:
            return
        used = list(dict.fromkeys(repr(captions[name]) for name in names))
        message = (
            f"{count(len(names), 'image has', 'images have')} {what} ({join_names(names)}); used instead: "
            f"{join_names(used)}."
        )
        self.problems.append(Problem("hint", str(folder), message))


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


def _fallback_caption(image: Path, folder: DataFolder, trigger: str) -> str:
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
