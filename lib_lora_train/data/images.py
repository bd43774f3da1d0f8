"""Picture files: checked and measured once, later read as the pixels of their bucket."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lib_lora_train.data.buckets import Placement
from lib_lora_train.errors import DataError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
"""Endings of the files that are read, in lower case."""

_PAPER = (255, 255, 255)
_ORIENTATION_TAG = 0x0112
_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture of an EXIF orientation upright; orientation 1 is not in it."""
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise for damaged files; they have no common base class."""


@dataclass(frozen=True)
class ImageFile:
    """A picture that decodes. Its size is the upright one (EXIF applied); the hash is the sha256 (hex) of its bytes."""

    path: Path
    width: int
    height: int
    content_hash: str


def read_image_file(path: Path) -> ImageFile:
    """The picture's size and hash, after checking that it decodes to its end; DataError when it does not.

    The file is read once. JPEGs are decoded at an eighth of their size and PNGs checked by their checksums,
    both of which meet every byte but cost a fraction of a full decoding.
    """
    content = read_bytes(path)
    try:
        check_complete(content)
        with Image.open(io.BytesIO(content)) as picture:
            width, height = picture.size
            if orientation_of(picture, content) >= 5:  # 5 to 8 lie on their side
                width, height = height, width
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from error
    return ImageFile(path, width, height, hashlib.sha256(content).hexdigest())


def read_pixels(image: ImageFile, placement: Placement) -> Image.Image:
    """The picture as training sees it: RGB, upright, transparency on white, resized, cut to the bucket.

    The resampling is Lanczos with its support widened to the scale, which averages over the area when shrinking.
    DataError when the file cannot be decoded or is no longer the one that was scanned.
    """
    content = read_bytes(image.path)
    if hashlib.sha256(content).hexdigest() != image.content_hash:
        raise DataError(f"{image.path} has changed since the folder was read. Read the folder again.")
    try:
        with Image.open(io.BytesIO(content)) as opened:
            upright = UPRIGHT.get(orientation_of(opened, content))
            picture = flatten(opened)
    except DECODING_ERRORS as error:
        raise _unreadable(image.path, error) from error
    if upright is not None:
        picture = picture.transpose(upright)
    size = (placement.resize_width, placement.resize_height)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = placement.left, placement.top
    return picture.crop((left, top, left + placement.width, top + placement.height))


def read_bytes(path: Path) -> bytes:
    """The file's content; DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = "it is not a picture" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
    return DataError(f"{path} cannot be decoded: {reason.rstrip('.')}. Replace or remove it.")


class _Source(io.BytesIO):
    """A picture's bytes; remembers whether more were asked for than there are."""

    ran_dry = False

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.ran_dry = self.ran_dry or (not found and size != 0)
        return found


def check_complete(content: bytes) -> None:
    """Raises one of `DECODING_ERRORS` unless the picture decodes to its last row."""
    source = _Source(content)
    with Image.open(source) as picture:
        if picture.format == "PNG":
            picture.verify()
            return
        picture.draft("RGB", (1, 1))
        source.ran_dry = False
        picture.load()
    if source.ran_dry:  # webuis may have told Pillow to fill truncated pictures with grey instead of raising
        raise OSError("image file is truncated")


def orientation_of(picture: Image.Image, content: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is damaged.

    Pillow decodes a whole PNG in search of EXIF behind the pixels, so the bytes are looked at first.
    """
    if picture.format == "PNG" and not any(mark in content for mark in _ORIENTATION_MARKS):
        return 1
    try:
        found = picture.getexif().get(_ORIENTATION_TAG, 1)
    except DECODING_ERRORS:
        return 1
    return found if found in UPRIGHT else 1


def may_be_transparent(picture: Image.Image) -> bool:
    """Whether the file has an alpha channel or a transparent colour, used or not."""
    return picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info


def flatten(picture: Image.Image) -> Image.Image:
    """RGB, 8 bit; transparent parts on white."""
    if may_be_transparent(picture):
        layers = picture.convert("RGBA")
        paper = Image.new("RGBA", layers.size, _PAPER)
        return Image.alpha_composite(paper, layers).convert("RGB")
    if picture.mode.startswith("I"):  # 16-bit grey: `convert` would clip instead of scaling
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return picture.convert("RGB")
