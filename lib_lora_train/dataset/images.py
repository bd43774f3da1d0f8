"""Image files: checked and measured once, later read as the pixels of their bucket."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageEnhance, UnidentifiedImageError

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.buckets import Placement

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
"""Endings of the files that are read, in lower case."""

WHITE = (255, 255, 255)
_ORIENTATION_TAG = 0x0112
_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of an EXIF orientation upright; orientation 1 is not in it."""
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
    """An image that decodes. Its size is the upright one (EXIF applied); the hash is the sha256 (hex) of its bytes.

    `has_alpha` says that parts of it are transparent.
    """

    path: Path
    width: int
    height: int
    content_hash: str
    has_alpha: bool = False


@dataclass(frozen=True)
class PixelTransform:
    """What happens to an image's pixels but for size and crop.

    `background` is put behind transparent parts. `jitter`: factors of brightness, contrast and saturation, and the
    share of the colour circle by which hues are turned.
    """

    is_mirrored: bool = False
    background: tuple[int, int, int] = WHITE
    jitter: tuple[float, float, float, float] | None = None


NO_TRANSFORM = PixelTransform()


def read_image_file(path: Path, *, detect_alpha: bool = True) -> ImageFile:
    """The image's size and hash, after checking that it decodes to its end; DataError when it does not.

    The file is read once. JPEGs are decoded at an eighth of their size and PNGs checked by their checksums,
    both of which meet every byte but cost a fraction of a full decoding. Images with an alpha channel are decoded
    wholly to see whether it is used; without `detect_alpha` it is taken as unused.
    """
    content = read_bytes(path)
    try:
        check_complete(content)
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if read_orientation(image, content) >= 5:  # 5 to 8 lie on their side
                width, height = height, width
            has_alpha = detect_alpha and is_transparent(image)
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from error
    return ImageFile(path, width, height, hashlib.sha256(content).hexdigest(), has_alpha)


def read_pixels(file: ImageFile, placement: Placement, transform: PixelTransform = NO_TRANSFORM) -> Image.Image:
    """The image as training sees it: RGB, upright, transparency on a colour, resized, mirrored, cut, coloured.

    The resampling is Lanczos with its support widened to the scale, which averages over the area when shrinking.
    DataError when the file cannot be decoded or is no longer the one that was scanned.
    """
    image = _upright(file, lambda opened: flatten(opened, transform.background))
    image = _placed(image, placement, transform.is_mirrored)
    return image if transform.jitter is None else jitter_colours(image, transform.jitter)


def read_mask(mask: ImageFile, placement: Placement, *, is_mirrored: bool, alpha: bool) -> Image.Image:
    """What of a placed image counts, as grey: a mask file's brightness, or an image's own alpha channel.

    A file of another size than its image is laid over it as a whole. DataError as for `read_pixels`.
    """
    grey = _upright(
        mask, lambda opened: opened.convert("RGBA").getchannel("A") if alpha else flatten(opened).convert("L")
    )
    return _placed(grey, placement, is_mirrored)


def read_upright_image(path: Path) -> Image.Image:
    """A whole image: RGB, upright, transparency on white; DataError when it does not decode to its end."""
    content = read_bytes(path)
    try:
        check_complete(content)
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from error
    return _decoded(path, content, flatten)


def _upright(image: ImageFile, take: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `take` makes of the opened image, turned as its EXIF says."""
    content = read_bytes(image.path)
    if hashlib.sha256(content).hexdigest() != image.content_hash:
        raise DataError(f"{image.path} has changed since the folder was read. Read the folder again.")
    return _decoded(image.path, content, take)


def _decoded(path: Path, content: bytes, take: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            upright = TRANSPOSE_BY_ORIENTATION.get(read_orientation(opened, content))
            image = take(opened)
    except DECODING_ERRORS as error:
        raise _unreadable(path, error) from error
    return image if upright is None else image.transpose(upright)


def _placed(image: Image.Image, placement: Placement, is_mirrored: bool) -> Image.Image:
    size = (placement.resize_width, placement.resize_height)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if is_mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = placement.left, placement.top
    return image.crop((left, top, left + placement.width, top + placement.height))


def jitter_colours(image: Image.Image, jitter: tuple[float, float, float, float]) -> Image.Image:
    """The RGB image with brightness, contrast, saturation and hue changed, in this order."""
    brightness, contrast, saturation, hue = jitter
    for enhance, factor in (
        (ImageEnhance.Brightness, brightness),
        (ImageEnhance.Contrast, contrast),
        (ImageEnhance.Color, saturation),
    ):
        image = enhance(image).enhance(factor)
    shift = round(hue * 256)
    if not shift:
        return image
    hues, *others = image.convert("HSV").split()
    turned = hues.point([(value + shift) % 256 for value in range(256)])
    return Image.merge("HSV", (turned, *others)).convert("RGB")


def read_bytes(path: Path) -> bytes:
    """The file's content; DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
    return DataError(f"{path} cannot be decoded: {reason.rstrip('.')}. Replace or remove it.")


class CountedStream(io.BytesIO):
    """An image's bytes; remembers whether more were asked for than there are."""

    ran_dry = False

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.ran_dry = self.ran_dry or (not found and size != 0)
        return found


def check_complete(content: bytes) -> None:
    """Raises one of `DECODING_ERRORS` unless the image decodes to its last row."""
    source = CountedStream(content)
    with Image.open(source) as image:
        if image.format == "PNG":
            image.verify()
        else:
            load_to_end(image, source, (1, 1))


def load_to_end(image: Image.Image, source: CountedStream, least: tuple[int, int]) -> None:
    """Decode an image opened from `source`; a JPEG at the smallest fraction of its size that is no less than `least`.

    Raises one of `DECODING_ERRORS` if it ends before its last row.
    """
    image.draft("RGB", least)
    source.ran_dry = False
    image.load()
    if source.ran_dry:  # webuis may have told Pillow to fill truncated images with grey instead of raising
        raise OSError("image file is truncated")


def read_orientation(image: Image.Image, content: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF block is damaged.

    Pillow decodes a whole PNG in search of EXIF behind the pixels, so the bytes are looked at first.
    """
    if image.format == "PNG" and not any(mark in content for mark in _ORIENTATION_MARKS):
        return 1
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except DECODING_ERRORS:
        return 1
    return found if found in TRANSPOSE_BY_ORIENTATION else 1


def may_be_transparent(image: Image.Image) -> bool:
    """Whether the file has an alpha channel or a transparent colour, used or not."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel lets the background through; decodes images that have an alpha channel."""
    if not may_be_transparent(image):
        return False
    layers = image if "A" in image.getbands() else image.convert("RGBA")
    low, _ = layers.getchannel("A").getextrema()
    return isinstance(low, (int, float)) and low < 255


def flatten(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """RGB, 8 bit; transparent parts on the background's colour."""
    if may_be_transparent(image):
        layers = image.convert("RGBA")
        paper = Image.new("RGBA", layers.size, (*background, 255))
        return Image.alpha_composite(paper, layers).convert("RGB")
    return to_eight_bits(image).convert("RGB")


def to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, which `convert` would clip instead of scaling; other images as they are."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
