"""Unguessable tokens for the images that the page may show.

The page never sends a path. It sends a token that the server issued for an image of the scanned dataset or a sample
of a run, so no other file can be requested.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps

from lib_lora_train.dataset.images import decoding, open_image, read_bytes

THUMBNAIL_PX = 192
_MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".avif": "image/avif",
}
_BACKGROUND = (255, 255, 255)


class ImageTokens:
    """Tokens of images, and a least-recently-used cache of their thumbnails."""

    def __init__(self, *, max_thumbnails: int = 4000) -> None:
        self._secret = secrets.token_bytes(16)
        self._paths: dict[str, Path] = {}
        self._thumbnails: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._max_thumbnails = max_thumbnails
        self._lock = threading.Lock()

    def publish(self, paths: Iterable[Path]) -> tuple[str, ...]:
        """Tokens for these images, which may be shown from now on; ValueError if a file is not an image."""
        tokens = []
        for path in paths:
            if path.suffix.lower() not in _MEDIA_TYPES:
                raise ValueError(f"{path} is not an image")
            token = hashlib.blake2b(str(path).encode(), key=self._secret, digest_size=12).hexdigest()
            self._paths[token] = path
            tokens.append(token)
        return tuple(tokens)

    def path_of(self, token: str) -> Path | None:
        """The image that a token was issued for, None for an unknown token."""
        return self._paths.get(token)

    def load_image(self, token: str) -> tuple[bytes, str]:
        """The file's bytes and media type; KeyError for an unknown token, DataError if it cannot be read."""
        path = self._paths[token]
        return read_bytes(path), _MEDIA_TYPES[path.suffix.lower()]

    def load_thumbnail(self, token: str) -> bytes:
        """A JPEG of at most 192 × 192 px, upright, transparency on white; errors as in `load_image`, or OSError."""
        path = self._paths[token]
        key = (token, path.stat().st_mtime_ns)
        with self._lock:
            if key in self._thumbnails:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key]
        thumbnail = _load_thumbnail(path)
        with self._lock:
            self._thumbnails[key] = thumbnail
            while len(self._thumbnails) > self._max_thumbnails:
                self._thumbnails.popitem(last=False)
        return thumbnail


def _load_thumbnail(path: Path) -> bytes:
    with decoding(path), open_image(io.BytesIO(read_bytes(path))) as opened:
        opened.draft("RGB", (THUMBNAIL_PX * 2, THUMBNAIL_PX * 2))  # decodes a JPEG at a reduced size, many times faster
        image = ImageOps.exif_transpose(opened) or opened
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            background = Image.new("RGB", image.size, _BACKGROUND)
            background.paste(image, mask=image.getchannel("A"))
            image = background
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
