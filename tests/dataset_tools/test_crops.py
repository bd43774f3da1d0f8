"""Manual crops: the part that training uses is shown exactly, and a crop keeps original, mask and caption."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import DataError, OutputError
from lib_lora_train.dataset.buckets import make_bucket_rule, place_image
from lib_lora_train.dataset.images import read_image_file, read_pixels
from lib_lora_train.dataset_tools.crops import Frame, compute_trained_frame, list_nearest_buckets, write_crop
from lib_lora_train.dataset_tools.repairs import write_undo

RULE = make_bucket_rule(TrainConfig(resolution=256, min_bucket=128, max_bucket=320))


def gradient(width: int, height: int) -> Image.Image:
    """Every column and row has its own colour: red is x, green is y."""
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    return Image.merge(
        "RGB", (across, Image.linear_gradient("L").resize((width, height)), Image.new("L", (width, height)))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A wide image with a caption and a mask of half its size."""
    place_ = tmp_path / "set"
    place_.mkdir()
    gradient(600, 200).save(place_ / "wide.png")
    Image.linear_gradient("L").rotate(90).resize((300, 100)).save(place_ / "wide-mask.png")
    (place_ / "wide.txt").write_text("zkw", encoding="utf-8")
    return place_


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_frame_is_the_part_that_training_uses(folder: Path) -> None:
    """The pixels that training reads are those of the frame, resized: within Lanczos' 8 levels at the edges."""
    image = read_image_file(folder / "wide.png")
    placement = place_image(image.width, image.height, RULE)
    frame = compute_trained_frame(placement, image.width, image.height)
    assert frame.width < image.width
    seen = read_pixels(image, placement)
    with Image.open(image.path) as whole:
        cut = whole.crop((frame.left, frame.top, frame.left + frame.width, frame.top + frame.height)).resize(seen.size)
    for name in ("R", "G"):
        difference = ImageChops.difference(seen.getchannel(name), cut.getchannel(name))
        assert max(level for level, count in enumerate(difference.histogram()) if count) <= 8


def test_an_image_that_fits_its_bucket_is_used_whole() -> None:
    assert compute_trained_frame(place_image(512, 512, RULE), 512, 512) == Frame(0, 0, 512, 512)


def test_the_nearest_bucket_is_the_images_own() -> None:
    placement = place_image(600, 200, RULE)
    assert list_nearest_buckets(600, 200, RULE)[0] == (placement.width, placement.height)


def test_a_crop_applies_to_image_and_mask_and_can_be_undone(folder: Path) -> None:
    before = contents(folder)
    fixed = write_crop(folder, folder / "wide.png", Frame(300, 50, 200, 100))
    assert not fixed.failed and fixed.undo is not None
    with Image.open(folder / "wide.png") as cut, Image.open(folder / "wide-mask.png") as mask:
        assert (cut.size, mask.size) == ((200, 100), (100, 50))
        assert cut.getpixel((0, 0)) == gradient(600, 200).getpixel((300, 50))
    kept = folder.with_name("set-originals")
    assert (kept / "wide.png").read_bytes() == before["wide.png"]
    assert (folder / "wide.txt").read_bytes() == before["wide.txt"]
    write_undo(fixed.undo)
    assert contents(folder) == before and not kept.exists()


def test_an_image_cropped_to_a_bucket_is_used_whole(folder: Path) -> None:
    size = list_nearest_buckets(600, 200, RULE)[1]
    unit = min(600 / size[0], 200 / size[1])
    write_crop(folder, folder / "wide.png", Frame(0, 0, round(size[0] * unit), round(size[1] * unit)))
    image = read_image_file(folder / "wide.png")
    placement = place_image(image.width, image.height, RULE)
    assert (placement.width, placement.height) == size
    lost = 1 - placement.width * placement.height / (placement.resize_width * placement.resize_height)
    assert lost < 0.02, "whole pixels only"


def test_a_crop_keeps_transparency_and_applies_orientation(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated: 200 × 100 is shown as 100 × 200
    gradient(200, 100).save(folder / "turned.jpg", exif=exif, quality=95)
    clear = gradient(200, 100).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((200, 100)))
    clear.save(folder / "clear.png")
    write_crop(folder, folder / "turned.jpg", Frame(0, 100, 100, 100))
    write_crop(folder, folder / "clear.png", Frame(0, 0, 100, 100))
    assert read_image_file(folder / "turned.jpg").height == 100
    assert read_image_file(folder / "clear.png").has_alpha


def test_undoing_crops_in_another_order_loses_nothing(folder: Path) -> None:
    """Every crop and every repair has its own undo list."""
    image = folder / "wide.png"
    whole = image.read_bytes()
    first = write_crop(folder, image, Frame(0, 0, 300, 200))
    half = image.read_bytes()
    second = write_crop(folder, image, Frame(0, 0, 100, 100))
    quarter = image.read_bytes()
    assert first.undo and second.undo
    write_undo(first.undo)
    assert image.read_bytes() == whole
    write_undo(second.undo)
    assert image.read_bytes() == half
    kept = {path.read_bytes() for path in (folder.parent / "set-originals").glob("wide*.png")}
    assert {whole, quarter} <= kept


def test_if_the_mask_cannot_be_written_the_image_is_unchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = contents(folder), atomic_write.write_bytes

    def write_all_but_masks(path: Path, content: bytes) -> None:
        if "mask" in path.name:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(atomic_write, "write_bytes", write_all_but_masks)
    with pytest.raises(OutputError, match="No space left"):
        write_crop(folder, folder / "wide.png", Frame(100, 0, 200, 200))
    assert contents(folder) == before


def test_16_bit_grey_becomes_8_bit_with_the_same_brightness(tmp_path: Path) -> None:
    """Pillow's own conversion clips at 255 of 65535, which makes such images white."""
    grey = tmp_path / "set" / "grey.png"
    grey.parent.mkdir()
    Image.new("I;16", (100, 100), 128 * 257).save(grey)
    write_crop(grey.parent, grey, Frame(0, 0, 80, 80))
    with Image.open(grey) as cut:
        assert (cut.mode, cut.size, cut.getextrema()) == ("L", (80, 80), (128, 128))


@pytest.mark.parametrize("frame", [Frame(0, 0, 20, 100), Frame(500, 0, 200, 100), Frame(-1, 0, 100, 100)])
def test_an_invalid_frame_is_refused_and_nothing_is_changed(folder: Path, frame: Frame) -> None:
    before = contents(folder)
    with pytest.raises(DataError, match=r"wide\.png"):
        write_crop(folder, folder / "wide.png", frame)
    assert contents(folder) == before


def test_images_that_share_a_mask_are_not_cropped(folder: Path) -> None:
    gradient(600, 200).save(folder / "wide.jpg")
    before = contents(folder)
    with pytest.raises(DataError, match=r"wide-mask.png is the mask of wide.png and of wide.jpg"):
        write_crop(folder, folder / "wide.png", Frame(0, 0, 200, 100))
    assert contents(folder) == before


def test_images_with_the_same_stem_and_no_mask_are_cropped_separately(folder: Path) -> None:
    (folder / "wide-mask.png").unlink()
    gradient(600, 200).save(folder / "wide.jpg")
    before = contents(folder)
    write_crop(folder, folder / "wide.png", Frame(0, 0, 200, 100))
    assert [name for name, content in contents(folder).items() if content != before[name]] == ["wide.png"]
