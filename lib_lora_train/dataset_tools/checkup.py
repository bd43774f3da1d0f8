"""What is wrong or odd in a data folder, image by image, each finding with its repair where there is one.

The doctor only looks; `fixes` does what a repair says. Every image is decoded once (see `patients`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from lib_lora_train.core.errors import DataError, Level
from lib_lora_train.core.image_sizes import MAX_SHARP_ENLARGEMENT
from lib_lora_train.dataset.captions import (
    decode_caption,
    find_caption_file,
    index_by_extension,
    list_caption_extensions,
)
from lib_lora_train.dataset.folder_names import natural_sort_key, parse_kohya_name
from lib_lora_train.dataset.images import IMAGE_EXTENSIONS, read_bytes
from lib_lora_train.dataset.masks import is_mask
from lib_lora_train.dataset_tools.image_cache import ImageFacts, ImageFactsCache
from lib_lora_train.dataset_tools.perceptual_hash import group_similar

Kind = Literal[
    "broken",
    "unread format",
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
Repair = Literal["", "set aside", "convert", "shrink", "flatten", "first frame", "turn", "write caption", "to UTF-8"]

HUGE_PX = 3000
_SHRINK_NEED = 4  # an image this many times the training side gains nothing by being larger
UNREAD_ENDINGS = (".gif", ".tif", ".tiff", ".jfif", ".tga", ".heic", ".heif", ".jxl", ".psd")
_MOST_READERS = 4


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd; `repair` is what `fixes` can do about it, "" where only a person can.

    `like` is the image that a duplicate is one of.
    """

    kind: Kind
    level: Level
    path: Path
    message: str
    repair: Repair = ""
    like: Path | None = None

    def __str__(self) -> str:
        return f"{self.path.name}: {self.message}"


@dataclass(frozen=True)
class CheckReport:
    """All that was found, in natural order of the files; `images` are those that decode.

    `checked_count` counts those too that do not; once stopped it is less than there are.
    """

    folder: Path
    images: tuple[ImageFacts, ...]
    findings: tuple[Finding, ...]
    checked_count: int = 0

    def of_kind(self, kind: Kind) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)


def count_images(folder: Path) -> int:
    """How many images `check_dataset` would look at; DataError if the folder cannot be read."""
    return len(_images_of(_files_of(folder)))


def check_dataset(
    folder: Path,
    *,
    resolution: int = 512,
    caption_extension: str = ".txt",
    cache: ImageFactsCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> CheckReport:
    """Looks at every image and caption in a data folder and its N_words sub-folders.

    Images in `cache` are not decoded again. `on_progress` is called with (done, total) images on the way; once
    `is_stopped`, the other images are left. DataError if the folder cannot be read.
    """
    files = sorted(_files_of(folder), key=lambda path: natural_sort_key(path.relative_to(folder).as_posix()))
    paths = _images_of(files)
    images: list[ImageFacts] = []
    findings = [_unread(path) for path in files if path.suffix.lower() in UNREAD_ENDINGS]
    done = 0
    with contextlib.closing(_looked_at(paths, cache or ImageFactsCache())) as looks:
        for done, (path, seen) in enumerate(looks, start=1):
            if isinstance(seen, ImageFacts):
                images.append(seen)
                findings += _of_image(seen, resolution)
            else:
                findings.append(_broken(path, seen))
            if on_progress:
                on_progress(done, len(paths))
            if is_stopped():
                break
    findings += [*_repeated(images), *_of_captions(files, paths, caption_extension)]
    in_order = sorted(findings, key=lambda found: natural_sort_key(str(found.path)))
    return CheckReport(folder, tuple(images), tuple(in_order), checked_count=done)


def _files_of(folder: Path) -> list[Path]:
    try:
        folders = [folder, *(path for path in folder.iterdir() if path.is_dir() and parse_kohya_name(path.name))]
        return [path for one in folders for path in one.iterdir() if path.is_file() and path.name[0] != "."]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}. Choose another folder.") from error


def _images_of(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS and not is_mask(path, files)]


# --- images -----------------------------------------------------------------------------------


def _looked_at(paths: Sequence[Path], cache: ImageFactsCache) -> Generator[tuple[Path, ImageFacts | str], None, None]:
    """Each image with what was seen, in order; several at once, as Pillow and hashing free the lock.

    Half of the processor's cores at most: the webui may be generating, or a training be running. Closing it leaves
    those that have not begun.
    """
    with ThreadPoolExecutor(max(1, min(_MOST_READERS, (os.cpu_count() or 1) // 2))) as readers:
        try:
            yield from zip(paths, readers.map(cache.inspect_image, paths), strict=True)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)  # of those that nobody waits for any more


def _broken(path: Path, reason: str) -> Finding:
    return Finding("broken", "warning", path, f"cannot be decoded ({reason}). Training leaves it out.", "set aside")


def _unread(path: Path) -> Finding:
    text = f"is {path.suffix[1:].upper()}, which training does not read. Save it as PNG, JPEG or WebP."
    can_open = path.suffix.lower() in Image.registered_extensions()
    return Finding("unread format", "warning", path, text, "convert" if can_open else "")


def _of_image(image: ImageFacts, resolution: int) -> Iterator[Finding]:
    path, size = image.path, f"{image.width}×{image.height}"
    scale = resolution / (image.width * image.height) ** 0.5
    if scale > MAX_SHARP_ENLARGEMENT:
        text = f"is {size}: it is enlarged {scale:.1f} times for {resolution} px, and the LoRA learns its blur."
        yield Finding("tiny", "warning", path, text, "set aside")
    if max(image.width, image.height) > HUGE_PX:
        text = f"is {size}, far more than {resolution} px needs: reading it takes long."
        yield Finding("huge", "hint", path, text, "shrink")
    if image.is_transparent:
        text = "is transparent in places; training puts a colour behind it (`alpha_background`)."
        yield Finding("transparent", "hint", path, text, "flatten")
    if image.is_animated:
        text = "is animated; training sees the first frame only."
        yield Finding("animated", "hint", path, text, "first frame")
    if image.orientation != 1:
        text = "lies on its side and has a note to turn it (EXIF). Training obeys it, other programs may not."
        yield Finding("rotated", "hint", path, text, "turn")


def _repeated(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Same bytes, then same look; of each group the largest image is the one to keep."""
    for numbers in group_similar([image.look for image in images]):
        best = max((images[n] for n in numbers), key=lambda p: p.width * p.height)  # of several, the first
        kept: dict[str, Path] = {best.content_hash: best.path}
        for image in (images[n] for n in numbers):
            if image is best:
                continue
            original = kept.setdefault(image.content_hash, image.path)
            if original != image.path:
                text = f"is the same file as {original.name}; it counts double."
                yield Finding("duplicate", "warning", image.path, text, "set aside", original)
            else:
                text = f"looks like {best.path.name}; what is shown twice is learnt twice as fast."
                yield Finding("near-duplicate", "hint", image.path, text, "set aside", best.path)


# --- captions -----------------------------------------------------------------------------------


def _of_captions(files: Sequence[Path], images: Sequence[Path], extension: str) -> Iterator[Finding]:
    endings = list_caption_extensions(extension)
    used: set[Path] = set()
    for folder in dict.fromkeys(path.parent for path in files):
        beside = index_by_extension(path for path in files if path.parent == folder)
        for image in (path for path in images if path.parent == folder):
            caption = find_caption_file(image, extension, beside)
            used.update(beside[key] for ending in endings if (key := (image.stem, ending)) in beside)
            yield from _of_caption(image, caption)
    for path in files:
        if path not in used and path.name.lower().endswith(endings):
            text = "is a caption without an image of its name. Rename it or put it away."
            yield Finding("orphan caption", "hint", path, text, "set aside")


def _of_caption(image: Path, caption: Path | None) -> Iterator[Finding]:
    if caption is None:
        text = "has no caption; trigger and class word stand in for it."
        yield Finding("no caption", "hint", image, text, "write caption")
        return
    try:
        text, is_unicode = decode_caption(read_bytes(caption))
    except DataError as error:
        yield Finding("caption encoding", "warning", caption, str(error))
        return
    if not text.replace("\0", "").strip():
        yield Finding("empty caption", "hint", image, f"has an empty caption, {caption.name}.", "write caption")
    elif not is_unicode:
        message = "is not UTF-8; letters beyond a to z may be read wrongly."
        yield Finding("caption encoding", "warning", caption, message, "to UTF-8")
