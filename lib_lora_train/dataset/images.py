"""Image files: checked and measured once, later read as pixels of the bucket's size."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageEnhance, UnidentifiedImageError

from lib_lora_train.core.errors import DataError, LoraTrainError
from lib_lora_train.dataset.buckets import Placement

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
"""Extensions of the files that are read, in lower case."""
UNSUPPORTED_EXTENSIONS = (".gif", ".tif", ".tiff", ".heic", ".heif", ".jxl", ".psd", ".jfif", ".tga")
"""Image formats that training does not read; they are reported instead of being ignored silently."""
SUPPORTED_FORMATS_ADVICE = "Save as PNG, JPEG or WebP."
CONVERTIBLE_EXTENSIONS = (".gif", ".tif", ".tiff", ".jfif", ".tga", ".psd")
"""Those that the dataset check converts to PNG."""
CONVERT_ADVICE = "Check images converts them to PNG; of several frames, the first one is used."

WHITE = (255, 255, 255)
_ORIENTATION_TAG = 0x0112
_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
_MAX_EXCESS = 8  # times the area of the bucket that is resized at once
_FILTER_RADIUS = 3  # of Lanczos, in pixels of the larger of the two images
TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the transpose that makes the image upright; 1 (upright already) is left out."""


@dataclass(frozen=True)
class ImageFile:
    """An image that decodes. The size is that of the upright image (EXIF applied).

    `content_hash` is the sha256 (hex) of the file's bytes; `has_alpha` is True if any pixel is transparent.
    """

    path: Path
    width: int
    height: int
    content_hash: str
    has_alpha: bool = False


@dataclass(frozen=True)
class PixelTransform:
    """What happens to an image's pixels besides resizing and cropping.

    `background` is the RGB colour behind transparent parts. `jitter` holds factors of brightness, contrast and
    saturation, and the hue shift as a share of the colour circle.
    """

    is_mirrored: bool = False
    background: tuple[int, int, int] = WHITE
    jitter: tuple[float, float, float, float] | None = None


NO_TRANSFORM = PixelTransform()


def read_image_file(path: Path, *, detect_alpha: bool = True) -> ImageFile:
    """The image's size and hash; DataError if it does not decode completely.

    The file is read once. JPEGs are decoded at an eighth of their size and PNGs verified by their checksums: both
    cover every byte at a fraction of the cost of full decoding. With `detect_alpha`, images with an alpha channel are
    fully decoded to see whether any pixel is transparent; without it, `has_alpha` is False.
    """
    content = read_bytes(path)
    with decoding(path):
        check_complete(content)
        with open_image(io.BytesIO(content)) as image:
            width, height = image.size
            if read_orientation(image, content) >= 5:  # 5 to 8 are rotated by 90°
                width, height = height, width
            has_alpha = detect_alpha and is_transparent(image)
    return ImageFile(path, width, height, hashlib.sha256(content).hexdigest(), has_alpha)


def read_pixels(file: ImageFile, placement: Placement, transform: PixelTransform = NO_TRANSFORM) -> Image.Image:
    """The image as training sees it: RGB, upright, flattened on a colour, resized, mirrored, cropped, colour-jittered.

    Resampling is Lanczos with its support scaled, which averages over the area when shrinking. DataError if the file
    cannot be decoded or has changed since the scan.
    """
    image = _read_scanned(file, lambda opened: flatten(opened, transform.background))
    image = _resize_and_crop(image, placement, transform.is_mirrored)
    return image if transform.jitter is None else jitter_colours(image, transform.jitter)


def read_mask(mask: ImageFile, placement: Placement, *, is_mirrored: bool, alpha: bool) -> Image.Image:
    """The mask of an image, as grey: a mask file's brightness or, with `alpha`, the image's own alpha channel.

    A mask of another size is stretched over the whole image. DataError as for `read_pixels`.
    """
    grey = _read_scanned(
        mask, lambda opened: opened.convert("RGBA").getchannel("A") if alpha else flatten(opened).convert("L")
    )
    return _resize_and_crop(grey, placement, is_mirrored)


def read_upright_image(path: Path) -> Image.Image:
    """The whole image: RGB, upright, transparency on white. DataError if it does not decode completely."""
    content = read_bytes(path)
    with decoding(path):
        check_complete(content)
    return _decode(path, content, flatten)


def _read_scanned(image: ImageFile, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The converted image, upright; DataError if the file has changed since the scan."""
    content = read_bytes(image.path)
    if hashlib.sha256(content).hexdigest() != image.content_hash:
        raise DataError(f"{image.path} has changed since the folder was scanned. Scan it again.")
    return _decode(image.path, content, convert)


def _decode(path: Path, content: bytes, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    with decoding(path), open_image(io.BytesIO(content)) as opened:
        upright = TRANSPOSE_BY_ORIENTATION.get(read_orientation(opened, content))
        image = convert(opened)
    return image if upright is None else image.transpose(upright)


def _resize_and_crop(image: Image.Image, placement: Placement, is_mirrored: bool) -> Image.Image:
    """The placed part of the image. Placements count from the left of the mirrored image."""
    size = (placement.resize_width, placement.resize_height)
    left = size[0] - placement.width - placement.left if is_mirrored else placement.left
    frame = (left, placement.top, left + placement.width, placement.top + placement.height)
    if size[0] * size[1] > _MAX_EXCESS * placement.width * placement.height:
        part = _resize_part(image, size, frame)
    else:
        resized = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        part = resized.crop(frame)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_mirrored else part


def _resize_part(image: Image.Image, size: tuple[int, int], frame: tuple[int, int, int, int]) -> Image.Image:
    """`image.resize(size).crop(frame)` for a frame that is a small part: only what it shows is resized.

    A 20,000 × 1 image would otherwise be resized to millions of pixels in height or width first.
    """
    scale = (image.width / size[0], image.height / size[1])
    margins = [math.ceil(_FILTER_RADIUS * max(1.0, 1 / s)) + 1 for s in scale]
    outer = [max(0, frame[axis] - margins[axis]) for axis in (0, 1)]
    outer += [min(size[axis], frame[axis + 2] + margins[axis]) for axis in (0, 1)]
    box = (outer[0] * scale[0], outer[1] * scale[1], outer[2] * scale[0], outer[3] * scale[1])
    resized = image.resize((outer[2] - outer[0], outer[3] - outer[1]), Image.Resampling.LANCZOS, box=box)
    return resized.crop((frame[0] - outer[0], frame[1] - outer[1], frame[2] - outer[0], frame[3] - outer[1]))


def jitter_colours(image: Image.Image, jitter: tuple[float, float, float, float]) -> Image.Image:
    """The RGB image with brightness, contrast, saturation and hue changed, in that order."""
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
    shifted = hues.point([(value + shift) % 256 for value in range(256)])
    return Image.merge("HSV", (shifted, *others)).convert("RGB")


def read_bytes(path: Path) -> bytes:
    """The content of a regular file; DataError for anything else (a pipe would wait for ever) and on failure."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is not a file. Remove it, or replace it by a file.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check its permissions.") from error


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turns whatever Pillow raises for an image into DataError.

    Each of its decoders raises errors of other kinds for damaged files, and Pillow names no common base class.
    """
    try:
        yield
    except LoraTrainError:
        raise
    except Exception as error:
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
        raise DataError(f"{path} cannot be decoded: {reason.rstrip('.')}. Replace or remove it.") from error


def open_image(stream: io.BytesIO) -> Image.Image:
    """The image, not decoded yet, in any format that Pillow decodes by itself: it starts a program for PostScript."""
    Image.init()
    return Image.open(stream, formats=[name for name in Image.ID if name != "EPS"])


class ImageStream(io.BytesIO):
    """An image's bytes; `hit_end` records whether a read found nothing left."""

    hit_end = False

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self.hit_end = self.hit_end or (not chunk and size != 0)
        return chunk


def check_complete(content: bytes) -> None:
    """Raise an error unless the image decodes to its last row; to be called while `decoding`."""
    stream = ImageStream(content)
    with open_image(stream) as image:
        if image.format == "PNG":
            image.verify()
        else:
            load_to_end(image, stream, (1, 1))


def load_to_end(image: Image.Image, stream: ImageStream, min_size: tuple[int, int]) -> None:
    """Decode an image opened from `stream`; a JPEG at the smallest fraction of its size that covers `min_size`.

    OSError if the file ends before the last row, and whatever the decoder raises.
    """
    image.draft("RGB", min_size)
    stream.hit_end = False
    image.load()
    if stream.hit_end:  # webuis may have set Pillow to fill truncated images with grey instead of raising
        raise OSError("image file is truncated")


def read_orientation(image: Image.Image, content: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or the EXIF block is damaged.

    Pillow decodes a whole PNG to find EXIF after the pixels, so the bytes are searched first.
    """
    if image.format == "PNG" and not any(mark in content for mark in _ORIENTATION_MARKS):
        return 1
    orientation = 1
    with contextlib.suppress(Exception):  # Pillow's errors for damaged blocks have no common base class
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    return orientation if orientation in TRANSPOSE_BY_ORIENTATION else 1


def may_be_transparent(image: Image.Image) -> bool:
    """Whether the file has an alpha channel or a transparent colour, used or not."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not fully opaque; decodes images that have an alpha channel."""
    if not may_be_transparent(image):
        return False
    layers = image if "A" in image.getbands() else image.convert("RGBA")
    low, _ = layers.getchannel("A").getextrema()
    return isinstance(low, (int, float)) and low < 255


def flatten(image: Image.Image, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """The image as 8-bit RGB, transparent parts on the background colour."""
    if may_be_transparent(image):
        layers = image.convert("RGBA")
        canvas = Image.new("RGBA", layers.size, (*background, 255))
        return Image.alpha_composite(canvas, layers).convert("RGB")
    return to_eight_bits(image).convert("RGB")


def to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8-bit grey, which `convert` would clip; other images unchanged."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
