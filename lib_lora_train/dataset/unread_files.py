"""Names the files of a data folder that are not read: images under other endings, captions without image, the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from lib_lora_train.core.errors import Problem
from lib_lora_train.dataset.captions import list_caption_extensions
from lib_lora_train.dataset.folder_contents import FolderContents
from lib_lora_train.dataset.folder_names import join_names
from lib_lora_train.dataset.images import (
    CONVERT_ADVICE,
    CONVERTIBLE_EXTENSIONS,
    IMAGE_EXTENSIONS,
    SUPPORTED_FORMATS_ADVICE,
    UNSUPPORTED_EXTENSIONS,
)

_KOHYA_CACHE = ".npz"  # latents and text-encoder outputs that sd-scripts stores beside the images
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "icon\r")
_SIGNATURES = (
    (0, b"\x89PNG", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP"),
    (4, b"ftypavif", "AVIF"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"8BPS", "PSD"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n", "JPEG XL"),
)
_ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "AVIF": ".avif"}


def report_unread_files(contents: FolderContents, captions: Collection[Path], extension: str) -> Iterator[Problem]:
    """A problem for each kind of file in a data folder that is not used; `captions` are the files that are."""
    where = str(contents.folder)
    left = [path for path in contents.other_files if path not in captions and path.name.lower() not in _SYSTEM_FILES]
    kinds = {path: read_image_kind(path) for path in left}
    unsupported = [path for path in left if kinds[path] and kinds[path] not in _ENDINGS]
    conditioning = [path for path in left if path.suffix.lower() in IMAGE_EXTENSIONS]
    misnamed = [path for path in left if kinds[path] in _ENDINGS and path not in conditioning]
    if unsupported:
        is_convertible = all(path.suffix.lower() in CONVERTIBLE_EXTENSIONS for path in unsupported)
        advice = CONVERT_ADVICE if is_convertible else SUPPORTED_FORMATS_ADVICE
        text = f"not read: {join_names([path.name for path in unsupported])}. {advice}"
        yield Problem("warning", where, text)
    if misnamed:
        first = misnamed[0]
        text = (
            f"not read, although they are images: {join_names([path.name for path in misnamed])}. Rename them, the "
            f"first to {first.stem}{_ENDINGS[kinds[first]]}."
        )
        yield Problem("warning", where, text)
    if conditioning:
        names = join_names([path.name for path in conditioning])
        yield Problem("hint", where, f"not trained on, as these are conditioning images of another program: {names}.")
    endings = list_caption_extensions(extension)
    orphans = [path.name for path in left if not kinds[path] and path.name.lower().endswith(endings)]
    if orphans:
        text = f"not read, as no image has the same name: {join_names(orphans)}."
        yield Problem("hint", where, text)
    caches = [path for path in left if path.suffix.lower() == _KOHYA_CACHE]
    if caches:
        names = join_names([path.name for path in caches])
        text = (
            f"not used, as they are caches of kohya's tools: {names}. Images and captions are encoded and cached here."
        )
        yield Problem("hint", where, text)
    used = {*unsupported, *misnamed, *conditioning, *caches, *(path for path in left if path.name in orphans)}
    rest = [path.name for path in left if path not in used]
    if rest:
        yield Problem("hint", where, f"not read: {join_names(rest)}.")


def read_image_kind(path: Path) -> str:
    """What kind of image a file is by its first bytes or, if these say nothing, by its ending; "" for none."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        start = b""
    found = next((kind for at, mark, kind in _SIGNATURES if start[at:].startswith(mark)), "")
    return found or (path.suffix[1:].upper() if path.suffix.lower() in UNSUPPORTED_EXTENSIONS else "")


def can_be_read_if_renamed(kind: str) -> bool:
    """Whether training reads this kind of image under its usual ending."""
    return kind in _ENDINGS
