"""Images are measured upright, broken ones are refused by name, and pixels follow the placement."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset import images
from lib_lora_train.dataset.buckets import BucketRule, Placement, place_image
from lib_lora_train.dataset.images import PixelTransform, read_image_file, read_pixels, read_upright_image
from lib_lora_train.dataset_tools.image_cache import inspect_image
from lib_lora_train.dataset_tools.repairs import edit_image

SQUARE = BucketRule(resolution=64, min_side=64, max_side=64, step=8, enabled=False)


def _noise(size: tuple[int, int] = (96, 64)) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3))


def _whole(width: int, height: int) -> Placement:
    return Placement(width, height, 0, 0, width, height)


def _colour(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_size_and_hash_are_those_of_the_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    _noise().save(path)
    image = read_image_file(path)
    assert (image.path, image.width, image.height) == (path, 96, 64)
    assert image.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_a_truncated_image_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, lenient: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # webui extensions switch this on for all
    path = tmp_path / f"cut.{ending}"
    _noise().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    with pytest.raises(DataError, match=rf"cut\.{ending}"):
        read_image_file(path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        read_image_file(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_image_file(tmp_path / "none.png")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_size_and_pixels(tmp_path: Path, orientation: int, ending: str) -> None:
    """An image stored as cameras do for each orientation is read upright: red at the top left, blue top right."""
    upright = Image.new("RGB", (96, 64), "white")
    upright.paste((220, 0, 0), (0, 0, 32, 32))
    upright.paste((0, 0, 220), (64, 0, 96, 32))
    turn = Image.Transpose
    stored_as = {
        1: [],
        2: [turn.FLIP_LEFT_RIGHT],
        3: [turn.ROTATE_180],
        4: [turn.FLIP_TOP_BOTTOM],
        5: [turn.TRANSPOSE],
        6: [turn.ROTATE_90],
        7: [turn.TRANSVERSE],
        8: [turn.ROTATE_270],
    }
    stored = upright
    for method in stored_as[orientation]:
        stored = stored.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    stored.save(path, exif=exif, quality=95)
    image = read_image_file(path)
    assert (image.width, image.height) == (96, 64)
    pixels = read_pixels(image, _whole(96, 64))
    # 60: JPEG and WebP shift saturated colours; red, blue and white are more than twice as far apart
    for point, colour in (((16, 16), (220, 0, 0)), ((80, 16), (0, 0, 220)), ((48, 48), (255, 255, 255))):
        assert all(abs(a - b) < 60 for a, b in zip(_colour(pixels, *point), colour, strict=True))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    _noise().save(path, exif=b"Exif\0\0MM\0*garbage")
    assert read_image_file(path).width == 96


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_flattened_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    if mode == "P":
        palette = Image.new("P", (64, 64), 0)
        palette.putpalette([9, 9, 9, 0, 0, 0])
        palette.paste(1, (0, 0, 32, 64))
        palette.save(path, transparency=0)
    else:
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), (0, 0, 32, 64))
        image.convert(mode).save(path)
    pixels = read_pixels(read_image_file(path), _whole(64, 64))
    assert pixels.mode == "RGB"
    assert _colour(pixels, 8, 8) == (0, 0, 0)
    assert _colour(pixels, 56, 8) == (255, 255, 255)


def test_half_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (64, 64), (0, 0, 0, 128)).save(path)
    pixels = read_pixels(read_image_file(path), _whole(64, 64))
    assert _colour(pixels, 0, 0) == (127, 127, 127)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("I;16", (64, 64), 257 * 100).save(path)
    pixels = read_pixels(read_image_file(path), _whole(64, 64))
    assert all(abs(value - 100) <= 1 for value in _colour(pixels, 0, 0))  # 1: rounding of the division


def test_pixels_are_resized_then_cropped_at_the_centre(tmp_path: Path) -> None:
    image = Image.new("RGB", (192, 64), "red")
    image.paste("green", (64, 0, 128, 64))
    path = tmp_path / "a.png"
    image.save(path)
    pixels = read_pixels(read_image_file(path), place_image(192, 64, SQUARE))
    assert pixels.size == (64, 64)
    assert pixels.getcolors() == [(64 * 64, (0, 128, 0))]


def test_an_image_changed_since_the_scan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(path)
    image = read_image_file(path)
    Image.new("RGB", (64, 64), "blue").save(path)
    with pytest.raises(DataError, match="has changed"):
        read_pixels(image, _whole(64, 64))


# --- decoders and thin images ---------------------------------------------------------------------


def test_whatever_a_decoder_raises_is_one_kind_of_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's AVIF decoder raises RuntimeError for damaged files, others anything else."""
    path = tmp_path / "1.png"
    Image.new("RGB", (64, 64)).save(path)
    file = read_image_file(path)

    class OddError(Exception):
        pass

    for error in (RuntimeError("no image item"), OddError("odd"), MemoryError(), AssertionError()):
        monkeypatch.setattr(Image, "open", _raising(error))
        readers: tuple[Callable[[], object], ...] = (
            lambda: read_image_file(path),
            lambda: read_upright_image(path),
            lambda: read_pixels(file, place_image(64, 64, BucketRule(64, min_side=64))),
        )
        for read in readers:
            with pytest.raises(DataError, match=r"1\.png cannot be decoded: "):
                read()
        assert "cannot be decoded" in str(inspect_image(path))
        with pytest.raises(DataError, match="cannot be decoded"):
            edit_image(path, lambda image: image)


def _raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def test_a_damaged_avif_is_skipped_as_other_damaged_images_are(tmp_path: Path) -> None:
    path = tmp_path / "1.avif"
    path.write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(40))
    with pytest.raises(DataError, match=r"1\.avif cannot be decoded"):
        read_image_file(path)


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (8000, 3), (300, 20)])
def test_a_thin_image_is_cropped_before_it_is_resized(
    tmp_path: Path, size: tuple[int, int], is_mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image in memory exceeds some megapixels, where resizing first makes up to 5 GB of one of 20,000 × 1."""
    path = tmp_path / "1.png"
    Image.effect_noise(size, 90).convert("RGB").save(path)
    areas: list[int] = []
    resize = Image.Image.resize

    def measured(image: Image.Image, target: tuple[int, int], *args: Any, **values: Any) -> Image.Image:
        areas.append(target[0] * target[1])
        return resize(image, target, *args, **values)

    monkeypatch.setattr(Image.Image, "resize", measured)
    placement = place_image(*size, BucketRule(512))
    pixels = read_pixels(read_image_file(path), placement, PixelTransform(is_mirrored=is_mirrored))
    assert pixels.size == (placement.width, placement.height)
    assert max(areas) < 20_000_000


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("size", [(1500, 40), (40, 1500), (900, 20)])
def test_cropping_first_changes_no_pixel(
    tmp_path: Path, size: tuple[int, int], is_mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tolerance of one level in 255: the positions of the filter are rounded differently."""
    path = tmp_path / "1.png"
    Image.effect_noise(size, 90).convert("RGB").save(path)
    placement = replace(place_image(*size, BucketRule(256, min_side=128, max_side=512)), left=7)
    file, transform = read_image_file(path), PixelTransform(is_mirrored=is_mirrored)
    part = np.asarray(read_pixels(file, placement, transform), dtype=int)
    monkeypatch.setattr(images, "_MAX_EXCESS", 10**9)
    whole = np.asarray(read_pixels(file, placement, transform), dtype=int)
    assert abs(part - whole).max() <= 1


def test_no_image_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has Ghostscript draw PostScript, whatever the file is called."""
    started: list[Any] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *values, **_: started.append(values))
    for name in ("a.png", "a.jpg", "a.tif"):
        _noise().save(tmp_path / name, "EPS")
        for read in (read_image_file, read_upright_image):
            with pytest.raises(DataError, match="is not an image"):
                read(tmp_path / name)
        with pytest.raises(DataError, match="is not an image"):
            edit_image(tmp_path / name, lambda image: image)
        assert "is not an image" in str(inspect_image(tmp_path / name))
    assert not started
