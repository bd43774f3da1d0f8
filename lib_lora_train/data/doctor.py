"""What is wrong or odd in a data folder, picture by picture, each finding with its remedy where there is one.

The doctor only looks; `fixes` does what a remedy says. Every picture is decoded once, several at a time.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from lib_lora_train.data.captions import by_ending, caption_endings, decode_caption, find_caption
from lib_lora_train.data.images import (
    DECODING_ERRORS,
    IMAGE_ENDINGS,
    UPRIGHT,
    check_complete,
    flatten,
    is_transparent,
    orientation_of,
    read_bytes,
)
from lib_lora_train.data.likeness import Fingerprint, alike_groups, fingerprint
from lib_lora_train.data.masks import is_mask
from lib_lora_train.data.names import kohya_name, natural_order
from lib_lora_train.errors import DataError, Level

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
Remedy = Literal["", "set aside", "convert", "shrink", "flatten", "first frame", "turn", "write caption", "to UTF-8"]

HUGE_PX = 3000
_SHRINK_NEED = 4  # a picture this many times the training side gains nothing by being larger
_BLURRED = 1.25  # enlarged more than this, as the plan judges it too
UNREAD_ENDINGS = (".gif", ".tif", ".tiff", ".jfif", ".tga", ".heic", ".heif", ".jxl", ".psd")
_SMALL = (256, 256)  # px, for looking at a picture


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd; `remedy` is what `fixes` can do about it, "" where only a person can.

    `like` is the picture that a duplicate is one of.
    """

    kind: Kind
    level: Level
    path: Path
    message: str
    remedy: Remedy = ""
    like: Path | None = None

    def __str__(self) -> str:
        return f"{self.path.name}: {self.message}"


@dataclass(frozen=True)
class Patient:
    """A picture that decodes: its upright size in px, content and look."""

    path: Path
    width: int
    height: int
    content_hash: str
    look: Fingerprint
    is_transparent: bool
    is_animated: bool
    orientation: int


@dataclass(frozen=True)
class Examination:
    """All that was found, in natural order of the files; `pictures` are those that decode."""

    folder: Path
    pictures: tuple[Patient, ...]
    findings: tuple[Finding, ...]

    def of_kind(self, kind: Kind) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)


def examine(
    folder: Path,
    *,
    resolution: int = 512,
    caption_extension: str = ".txt",
    tell: Callable[[int, int], None] | None = None,
) -> Examination:
    """Looks at every picture and caption in a data folder and its N_words sub-folders.

    `tell` is called with (done, total) pictures on the way. DataError if the folder cannot be read.
    """
    try:
        folders = [folder, *(path for path in folder.iterdir() if path.is_dir() and kohya_name(path.name))]
        files = [path for one in folders for path in one.iterdir() if path.is_file() and path.name[0] != "."]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}. Choose another folder.") from error
    files.sort(key=lambda path: natural_order(path.relative_to(folder).as_posix()))
    images = [path for path in files if path.suffix.lower() in IMAGE_ENDINGS and not is_mask(path, files)]
    pictures: list[Patient] = []
    findings = [_unread(path) for path in files if path.suffix.lower() in UNREAD_ENDINGS]
    for number, seen in enumerate(_looked_at(images), start=1):
        if isinstance(seen, Patient):
            pictures.append(seen)
            findings += _of_picture(seen, resolution)
        else:
            findings.append(seen)
        if tell:
            tell(number, len(images))
    findings += [*_repeated(pictures), *_of_captions(files, images, caption_extension)]
    return Examination(
        folder, tuple(pictures), tuple(sorted(findings, key=lambda found: natural_order(str(found.path))))
    )


# --- pictures -----------------------------------------------------------------------------------


def _looked_at(paths: Sequence[Path]) -> Iterator[Patient | Finding]:
    """Each picture examined, in order; several at once, as Pillow and hashing free the lock."""
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as readers:
        yield from readers.map(_look_at, paths)


def _look_at(path: Path) -> Patient | Finding:
    try:
        content = read_bytes(path)
        check_complete(content)
        with Image.open(io.BytesIO(content)) as picture:
            return _patient(path, content, picture)
    except (DataError, *DECODING_ERRORS) as error:
        reason = str(error) or repr(error)
        text = f"cannot be decoded ({reason.rstrip('.')}). Training leaves it out."
        return Finding("broken", "warning", path, text, "set aside")


def _patient(path: Path, content: bytes, picture: Image.Image) -> Patient:
    width, height = picture.size
    orientation = orientation_of(picture, content)
    is_animated = bool(getattr(picture, "is_animated", False))
    picture.draft("RGB", _SMALL)  # JPEG: decoded at a fraction of its size
    has_alpha = is_transparent(picture)
    small = flatten(picture)
    if orientation in UPRIGHT:
        small = small.transpose(UPRIGHT[orientation])
    size = (height, width) if orientation >= 5 else (width, height)
    return Patient(
        path,
        *size,
        content_hash=hashlib.sha256(content).hexdigest(),
        look=fingerprint(small),
        is_transparent=has_alpha,
        is_animated=is_animated,
        orientation=orientation,
    )


def _unread(path: Path) -> Finding:
    text = f"is {path.suffix[1:].upper()}, which training does not read. Save it as PNG, JPEG or WebP."
    can_open = path.suffix.lower() in Image.registered_extensions()
    return Finding("unread format", "warning", path, text, "convert" if can_open else "")


def _of_picture(picture: Patient, resolution: int) -> Iterator[Finding]:
    path, size = picture.path, f"{picture.width}×{picture.height}"
    scale = resolution / (picture.width * picture.height) ** 0.5
    if scale > _BLURRED:
        text = f"is {size}: it is enlarged {scale:.1f} times for {resolution} px, and the LoRA learns its blur."
        yield Finding("tiny", "warning", path, text, "set aside")
    if max(picture.width, picture.height) > HUGE_PX:
        text = f"is {size}, far more than {resolution} px needs: reading it takes long."
        yield Finding("huge", "hint", path, text, "shrink")
    if picture.is_transparent:
        text = "is transparent in places; training puts a colour behind it (`alpha_background`)."
        yield Finding("transparent", "hint", path, text, "flatten")
    if picture.is_animated:
        text = "is animated; training sees the first frame only."
        yield Finding("animated", "hint", path, text, "first frame")
    if picture.orientation != 1:
        text = "lies on its side and has a note to turn it (EXIF). Training obeys it, other programs may not."
        yield Finding("rotated", "hint", path, text, "turn")


def _repeated(pictures: Sequence[Patient]) -> Iterator[Finding]:
    """Same bytes, then same look; of each group the largest picture is the one to keep."""
    for numbers in alike_groups([picture.look for picture in pictures]):
        best = max((pictures[n] for n in numbers), key=lambda p: (p.width * p.height, -pictures.index(p)))
        kept: dict[str, Path] = {best.content_hash: best.path}
        for picture in (pictures[n] for n in numbers):
            if picture is best:
                continue
            original = kept.setdefault(picture.content_hash, picture.path)
            if original != picture.path:
                text = f"is the same file as {original.name}; it counts double."
                yield Finding("duplicate", "warning", picture.path, text, "set aside", original)
            else:
                text = f"looks like {best.path.name}; what is shown twice is learnt twice as fast."
                yield Finding("near-duplicate", "hint", picture.path, text, "set aside", best.path)


# --- captions -----------------------------------------------------------------------------------


def _of_captions(files: Sequence[Path], images: Sequence[Path], extension: str) -> Iterator[Finding]:
    endings = caption_endings(extension)
    used: set[Path] = set()
    for folder in dict.fromkeys(path.parent for path in files):
        beside = by_ending(path for path in files if path.parent == folder)
        for image in (path for path in images if path.parent == folder):
            caption = find_caption(image, extension, beside)
            used.update(beside[key] for ending in endings if (key := (image.stem, ending)) in beside)
            yield from _of_caption(image, caption)
    for path in files:
        if path not in used and path.name.lower().endswith(endings):
            text = "is a caption without a picture of its name. Rename it or put it away."
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
