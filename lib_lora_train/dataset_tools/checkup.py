"""Dataset check: problems of the images and captions in a data folder, with a repair where there is one.

The check changes nothing; `repairs.write_repairs` does. Every image is decoded once and cached (`image_cache`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import DataError, Level
from lib_lora_train.core.image_sizes import MAX_SHARP_ENLARGEMENT
from lib_lora_train.core.wording import count, without_name
from lib_lora_train.dataset.caption_encoding import Reading, decode_caption, list_readings, shorten
from lib_lora_train.dataset.captions import (
    find_caption_file,
    index_by_extension,
    list_caption_extensions,
    strip_caption,
)
from lib_lora_train.dataset.data_folders import UNREAD_ADVICE, scan_concept_folders, unread_folders
from lib_lora_train.dataset.folder_contents import FolderContents, scan_below, scan_data_folders
from lib_lora_train.dataset.folder_names import name_without_date, natural_sort_key
from lib_lora_train.dataset.images import IMAGE_EXTENSIONS, SUPPORTED_FORMATS_ADVICE, read_bytes
from lib_lora_train.dataset.unread_files import can_be_read_if_renamed, read_image_kind
from lib_lora_train.dataset_tools.image_cache import ImageFacts, ImageFactsCache
from lib_lora_train.dataset_tools.perceptual_hash import group_similar

Kind = Literal[
    "nothing to train on",
    "date as repeats",
    "folder not read",
    "broken",
    "unsupported format",
    "tiny",
    "huge",
    "transparent",
    "animated",
    "rotated",
    "duplicate",
    "near-duplicate",
    "no caption",
    "empty caption",
    "caption encoding",
    "orphan caption",
]
Repair = Literal[
    "", "set aside", "convert", "shrink", "flatten", "first frame", "rotate", "write caption", "to UTF-8", "rename"
]

HUGE_PX = 3000
_MAX_THREADS = 4
_READINGS = 8


@dataclass(frozen=True)
class Finding:
    """One problem of a file; `repair` is what `write_repairs` can do about it, "" if only the user can.

    `like` is the image that a duplicate is a copy of. `readings` are the ways a caption that is not Unicode may read.
    """

    kind: Kind
    level: Level
    path: Path
    message: str
    repair: Repair = ""
    like: Path | None = None
    readings: tuple[Reading, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", without_name(self.message, str(self.path)))

    def __str__(self) -> str:
        return f"{self.path.name}: {self.message}"


@dataclass(frozen=True)
class CheckReport:
    """All findings in natural order of the files; `images` are those that decode.

    `checked_count` includes images that do not decode; it is less than the total if the checkup was stopped.
    """

    folder: Path
    images: tuple[ImageFacts, ...]
    findings: tuple[Finding, ...]
    checked_count: int = 0
    seen: Mapping[Path, FileState] = field(default_factory=dict)
    """The files of the findings as they were checked."""


FileState = tuple[int, int]
"""(time of the last change in ns, size in bytes)."""


def read_state(path: Path) -> FileState | None:
    """The state of a file, None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def count_images(folder: Path) -> int:
    """The number of images that `check_dataset` would check; DataError if the folder cannot be read."""
    return sum(len(contents.images) for contents in scan_data_folders(folder))


def check_dataset(
    folder: Path,
    *,
    resolution: int = 512,
    caption_extension: str = ".txt",
    cache: ImageFactsCache | None = None,
    others: Collection[Path] = (),
    on_progress: Callable[[int, int], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> CheckReport:
    """The findings about all images and captions in a data folder and its `N_words` sub-folders.

    Images in `cache` are not decoded again. `others` are the resolved folders of all concepts, which are not named as
    unread. `on_progress` is called with (done, total) images; once `is_stopped`
    returns True, the remaining images are skipped. DataError if the folder cannot be read.
    """
    contents = scan_data_folders(folder)
    paths = sorted(
        (path for found in contents for path in found.images),
        key=lambda path: natural_sort_key(path.relative_to(folder).as_posix()),
    )
    images: list[ImageFacts] = []
    files = [path for found in contents for path in found.other_files]
    findings = [_report_unsupported(path, kind) for path in files if (kind := _unread_kind(path))]
    findings += [_report_date(found.folder) for found in contents[1:] if name_without_date(found.folder.name)]
    if paths:  # without any, the finding about that names the nearest folder with images
        findings += map(_report_unread, unread_folders(contents[0], contents[1:], scan_below(contents[0], others)))
    done = 0
    with contextlib.closing(_inspect_all(paths, cache or ImageFactsCache())) as results:
        for done, (path, result) in enumerate(results, start=1):
            if isinstance(result, ImageFacts):
                images.append(result)
                findings += _check_image(result, resolution)
            else:
                findings.append(_report_broken(path, result))
            if on_progress:
                on_progress(done, len(paths))
            if is_stopped():
                break
    if done == len(paths) and not images:
        findings.append(_report_no_images(folder, len(paths)))
    captioned = _list_captioned(contents, caption_extension)
    findings += [*_check_duplicates(images, captioned), *_check_captions(contents, caption_extension)]
    in_order = sorted(findings, key=lambda finding: natural_sort_key(str(finding.path)))
    touched = {path for finding in findings for path in (finding.path, finding.like) if path}
    seen = {path: state for path in touched if (state := read_state(path))}
    return CheckReport(folder, tuple(images), tuple(in_order), checked_count=done, seen=seen)


# --- images -----------------------------------------------------------------------------------


def _inspect_all(paths: Sequence[Path], cache: ImageFactsCache) -> Generator[tuple[Path, ImageFacts | str], None, None]:
    """Each image with its facts or error, in order. Several threads: Pillow and hashing release the GIL.

    At most half of the CPU cores are used, as the webui may be generating or training. Closing the generator skips
    the images that have not been started.
    """
    with ThreadPoolExecutor(max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 2))) as pool:
        try:
            yield from zip(paths, pool.map(cache.inspect, paths), strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # nobody waits for the rest


def _report_broken(path: Path, reason: str) -> Finding:
    return Finding("broken", "warning", path, f"cannot be decoded ({reason}). Training skips it.", "set aside")


def _unread_kind(path: Path) -> str:
    """The kind of an image that training does not read because of its ending; "" for all other files."""
    return "" if path.suffix.lower() in IMAGE_EXTENSIONS else read_image_kind(path)


def _report_unsupported(path: Path, kind: str) -> Finding:
    if can_be_read_if_renamed(kind):
        text = f"is a {kind} under another ending, so training does not read it. Rename or convert it."
        return Finding("unsupported format", "warning", path, text, "convert")
    can_open = path.suffix.lower() in Image.registered_extensions()
    advice = "Convert saves it as PNG, of several frames the first." if can_open else SUPPORTED_FORMATS_ADVICE
    text = f"is a {kind} file, which training does not read. {advice}"
    return Finding("unsupported format", "warning", path, text, "convert" if can_open else "")


def _report_unread(contents: FolderContents) -> Finding:
    text = f"is not read, with {count(len(contents.images), 'image')}. {UNREAD_ADVICE}"
    return Finding("folder not read", "warning", contents.folder, text)


def _report_date(folder: Path) -> Finding:
    text = f"is read as repeats, but is probably a date. Rename makes it {name_without_date(folder.name)}."
    return Finding("date as repeats", "error", folder, text, "rename")


def _report_no_images(folder: Path, broken: int) -> Finding:
    found = scan_concept_folders(Concept(str(folder)))
    text = found.failure or f"none of its images can be read ({broken} tried), so there is nothing to train on."
    return Finding("nothing to train on", "error", folder, text)


def _check_image(image: ImageFacts, resolution: int) -> Iterator[Finding]:
    path, size = image.path, f"{image.width}×{image.height}"
    scale = resolution / (image.width * image.height) ** 0.5
    if scale > MAX_SHARP_ENLARGEMENT:
        text = f"is {size}: it is enlarged {scale:.1f}× for {resolution} px, and the LoRA learns the blur."
        yield Finding("tiny", "warning", path, text, "set aside")
    if max(image.width, image.height) > HUGE_PX:
        text = f"is {size}, far more than {resolution} px needs, and slow to read."
        yield Finding("huge", "hint", path, text, "shrink")
    if image.is_transparent:
        text = "has transparent parts; training fills them with a colour (`alpha_background`)."
        yield Finding("transparent", "hint", path, text, "flatten")
    if image.is_animated:
        text = "is animated; training uses the first frame only."
        yield Finding("animated", "hint", path, text, "first frame")
    if image.orientation != 1:
        text = "has an EXIF rotation tag. Training applies it; other programs may not."
        yield Finding("rotated", "hint", path, text, "rotate")


def _check_duplicates(images: Sequence[ImageFacts], captioned: Collection[Path]) -> Iterator[Finding]:
    """Images with the same bytes or the same look. The one to keep has a caption, and is the largest of those."""

    def worth(image: ImageFacts) -> tuple[bool, int, int]:
        state = read_state(image.path)
        return image.path in captioned, image.width * image.height, state[1] if state else 0

    for numbers in group_similar([image.fingerprint for image in images]):
        group = sorted((images[n] for n in numbers), key=worth, reverse=True)  # stable: the first of equal ones
        best, originals = group[0], {group[0].content_hash: group[0].path}
        for image in group[1:]:
            original = originals.setdefault(image.content_hash, image.path)
            is_copy = original != image.path
            like = original if is_copy else best.path
            kind: Kind = "duplicate" if is_copy else "near-duplicate"
            what = "is the same file as" if is_copy else "looks like"
            why = "it is trained on twice" if is_copy else "images shown twice are learnt twice as fast"
            notes = f"{_describe(image, captioned)} beside {_describe(best, captioned)}"
            text = f"{what} {like.name}; {why}. {notes}: {like.name} stays."
            yield Finding(kind, "warning" if is_copy else "hint", image.path, text, "set aside", like)


def _describe(image: ImageFacts, captioned: Collection[Path]) -> str:
    return f"{image.width}×{image.height} {'with' if image.path in captioned else 'without'} caption"


def _list_captioned(folders: Sequence[FolderContents], extension: str) -> set[Path]:
    """The images with a caption that is not empty."""
    found = set()
    for contents in folders:
        beside = index_by_extension(contents.other_files)
        for image in contents.images:
            caption = find_caption_file(image, extension, beside)
            with contextlib.suppress(DataError):
                if caption and strip_caption(decode_caption(read_bytes(caption))[0]):
                    found.add(image)
    return found


# --- captions -----------------------------------------------------------------------------------


def _check_captions(folders: Sequence[FolderContents], extension: str) -> Iterator[Finding]:
    endings = list_caption_extensions(extension)
    for contents in folders:
        beside = index_by_extension(contents.other_files)
        used: set[Path] = set()
        for image in contents.images:
            used.update(beside[key] for ending in endings if (key := (image.stem, ending)) in beside)
            yield from _check_caption(image, find_caption_file(image, extension, beside))
        for path in contents.other_files:
            if path not in used and path.name.lower().endswith(endings):
                text = "is a caption without an image of the same name. Rename it or set it aside."
                yield Finding("orphan caption", "hint", path, text, "set aside")


def _check_caption(image: Path, caption: Path | None) -> Iterator[Finding]:
    if caption is None:
        text = "has no caption; trigger and class word are used instead."
        yield Finding("no caption", "hint", image, text, "write caption")
        return
    try:
        raw = read_bytes(caption)
        text, is_unicode = decode_caption(raw)
    except DataError as error:
        yield Finding("caption encoding", "warning", caption, str(error))
        return
    if not strip_caption(text):
        yield Finding("empty caption", "hint", image, f"has an empty caption, {caption.name}.", "write caption")
    elif not is_unicode:
        readings = list_readings(raw)
        message = f"is not UTF-8; read as {readings[0].name}: {shorten(text)!r}. Choose the encoding that reads right."
        yield Finding("caption encoding", "warning", caption, message, "to UTF-8", readings=readings[:_READINGS])
