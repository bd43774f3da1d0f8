"""An image as the doctor sees it: decoded once, at a fraction of its size where the format can, and remembered."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.images import (
    DECODING_ERRORS,
    TRANSPOSE_BY_ORIENTATION,
    CountedStream,
    flatten,
    is_transparent,
    load_to_end,
    read_bytes,
    read_orientation,
)
from lib_lora_train.dataset_tools.perceptual_hash import Fingerprint, compute_fingerprint

_LEAST = (64, 64)  # px that a JPEG is decoded to at least: seven for each cell of a compute_fingerprint
_MOST_REMEMBERED = 100_000  # files, of about 1 KB each


@dataclass(frozen=True)
class ImageFacts:
    """An image that decodes: its upright size in px, content and look."""

    path: Path
    width: int
    height: int
    content_hash: str
    look: Fingerprint
    is_transparent: bool
    is_animated: bool
    orientation: int


def inspect_image(path: Path) -> ImageFacts | str:
    """The image, or why it does not decode to its end."""
    try:
        content = read_bytes(path)
        source = CountedStream(content)
        with Image.open(source) as image:
            return _patient(path, image, source)
    except (DataError, *DECODING_ERRORS) as error:
        return (str(error) or repr(error)).rstrip(".")


class ImageFactsCache:
    """What was seen of files before; a file is the same while its size and its time of change are.

    May be used by several threads at once.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[tuple[int, int], ImageFacts | str]] = {}

    def inspect_image(self, path: Path) -> ImageFacts | str:
        """As `inspect_image`, which is called for files that are new or have changed only."""
        try:
            stat = path.stat()
        except OSError as error:
            return f"{error.strerror or error}"
        state = (stat.st_size, stat.st_mtime_ns)
        before = self._seen.get(path)
        if before and before[0] == state:
            return before[1]
        seen = inspect_image(path)
        if len(self._seen) >= _MOST_REMEMBERED:
            self._seen.clear()
        self._seen[path] = state, seen
        return seen


def _patient(path: Path, image: Image.Image, source: CountedStream) -> ImageFacts:
    content = source.getvalue()
    width, height = image.size
    orientation = read_orientation(image, content)
    is_animated = bool(getattr(image, "is_animated", False))
    if image.format == "PNG":
        with Image.open(io.BytesIO(content)) as checked:
            checked.verify()  # the checksums, which decoding passes over
    load_to_end(image, source, _LEAST)
    has_alpha = is_transparent(image)
    small = image.convert("RGB") if image.mode == "RGBA" and not has_alpha else flatten(image)
    if orientation in TRANSPOSE_BY_ORIENTATION:
        small = small.transpose(TRANSPOSE_BY_ORIENTATION[orientation])
    size = (height, width) if orientation >= 5 else (width, height)
    return ImageFacts(
        path,
        *size,
        content_hash=hashlib.sha256(content).hexdigest(),
        look=compute_fingerprint(small),
        is_transparent=has_alpha,
        is_animated=is_animated,
        orientation=orientation,
    )
