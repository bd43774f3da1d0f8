"""Facts about images for the dataset checkup: each is decoded once, at reduced size if possible, and cached."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.images import (
    TRANSPOSE_BY_ORIENTATION,
    ImageStream,
    decoding,
    flatten,
    is_transparent,
    load_to_end,
    open_image,
    read_bytes,
    read_orientation,
)
from lib_lora_train.dataset_tools.perceptual_hash import Fingerprint, compute_fingerprint

_MIN_DECODED_SIZE = (64, 64)  # px, for JPEGs: seven for each cell of a fingerprint
_MAX_ENTRIES = 100_000  # of about 1 KB each


@dataclass(frozen=True)
class ImageFacts:
    """What the checkup knows about an image that decodes; the size in px is that of the upright image."""

    path: Path
    width: int
    height: int
    content_hash: str
    fingerprint: Fingerprint
    is_transparent: bool
    is_animated: bool
    orientation: int


def inspect_image(path: Path) -> ImageFacts | str:
    """The facts about an image, or why it does not decode completely."""
    try:
        stream = ImageStream(read_bytes(path))
        with decoding(path), open_image(stream) as image:
            return _collect_facts(path, image, stream)
    except DataError as error:
        return str(error)


class ImageFactsCache:
    """A cache of `inspect_image`; an entry is valid while the file's size and modification time are the same.

    May be used by several threads at once.
    """

    def __init__(self) -> None:
        self._entries: dict[Path, tuple[tuple[int, int], ImageFacts | str]] = {}

    def inspect(self, path: Path) -> ImageFacts | str:
        """As `inspect_image`, which is called only for new or changed files."""
        try:
            stat = path.stat()
        except OSError as error:
            return f"{error.strerror or error}"
        state = (stat.st_size, stat.st_mtime_ns)
        entry = self._entries.get(path)
        if entry and entry[0] == state:
            return entry[1]
        result = inspect_image(path)
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        self._entries[path] = state, result
        return result


def _collect_facts(path: Path, image: Image.Image, stream: ImageStream) -> ImageFacts:
    content = stream.getvalue()
    width, height = image.size
    orientation = read_orientation(image, content)
    is_animated = bool(getattr(image, "is_animated", False))
    if image.format == "PNG":
        with open_image(io.BytesIO(content)) as checked:
            checked.verify()  # the checksums, which decoding ignores
    load_to_end(image, stream, _MIN_DECODED_SIZE)
    has_alpha = is_transparent(image)
    small = image.convert("RGB") if image.mode == "RGBA" and not has_alpha else flatten(image)
    if orientation in TRANSPOSE_BY_ORIENTATION:
        small = small.transpose(TRANSPOSE_BY_ORIENTATION[orientation])
    size = (height, width) if orientation >= 5 else (width, height)
    return ImageFacts(
        path,
        *size,
        content_hash=hashlib.sha256(content).hexdigest(),
        fingerprint=compute_fingerprint(small),
        is_transparent=has_alpha,
        is_animated=is_animated,
        orientation=orientation,
    )
