"""Tiny images are upscaled to the training resolution; the originals are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.core.errors import GenerationInterrupted, HostError
from lib_lora_train.dataset_tools.checkup import check_dataset
from lib_lora_train.dataset_tools.repairs import write_undo
from lib_lora_train.dataset_tools.upscale import upscale_lanczos, upscaled_size, write_upscaled


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tiny images, one of them transparent, with captions."""
    place = tmp_path / "set"
    place.mkdir()
    Image.linear_gradient("L").convert("RGB").resize((100, 50)).save(place / "a.jpg", quality=95)
    clear = Image.radial_gradient("L").convert("RGBA").resize((60, 60))
    clear.putalpha(Image.linear_gradient("L").resize((60, 60)))
    clear.save(place / "b.png")
    for name in "ab":
        (place / f"{name}.txt").write_text("zkw", encoding="utf-8")
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", [(100, 50), (60, 60), (33, 97), (512, 512)])
def test_the_area_is_reached_and_the_aspect_ratio_kept(size: tuple[int, int]) -> None:
    width, height = upscaled_size(size, 512)
    assert 512**2 <= width * height <= 1.02 * 512**2, "whole pixels, rounded up"
    assert width / height == pytest.approx(size[0] / size[1], rel=0.02)


def test_a_square_is_upscaled_exactly_to_the_resolution() -> None:
    """Rounding errors of the scale add no pixel."""
    assert {upscaled_size((side, side), 768) for side in range(20, 768)} == {(768, 768)}


def test_large_images_keep_their_size() -> None:
    assert upscaled_size((2000, 1500), 512) == (2000, 1500)


def test_after_upscaling_nothing_is_tiny_and_undo_restores_everything(folder: Path) -> None:
    before = contents(folder)
    tiny = [found.path for found in check_dataset(folder, resolution=512).findings if found.kind == "tiny"]
    assert len(tiny) == 2
    fixed = write_upscaled(folder, tiny, 512, upscale_lanczos)
    assert not fixed.failed and fixed.undo is not None
    assert not [found for found in check_dataset(folder, resolution=512).findings if found.kind == "tiny"]
    with Image.open(folder / "b.png") as clear, Image.open(folder / "a.jpg") as plain:
        assert (clear.mode, clear.size, plain.format) == ("RGBA", (512, 512), "JPEG")
    assert (folder / "a.txt").read_bytes() == before["a.txt"]
    write_undo(fixed.undo)
    assert contents(folder) == before


def test_the_upscaler_gets_rgb_and_its_result_is_used(folder: Path) -> None:
    calls = []

    def upscale_in_one_colour(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        calls.append((image.mode, size))
        return Image.new("RGB", size, (9, 90, 200))

    write_upscaled(folder, [folder / "b.png"], 256, upscale_in_one_colour)
    assert calls == [("RGB", (256, 256))]
    with Image.open(folder / "b.png") as clear:
        assert clear.convert("RGB").getpixel((128, 128)) == (9, 90, 200)


def test_a_failure_is_reported_and_the_others_are_upscaled(folder: Path) -> None:
    before = contents(folder)

    def refuse_squares(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if image.size == (60, 60):
            raise HostError("no square images")
        return upscale_lanczos(image, size)

    fixed = write_upscaled(folder, [folder / "b.png", folder / "a.jpg"], 256, refuse_squares)
    assert [path.name for path in fixed.repaired] == ["a.jpg"]
    assert "no square images" in fixed.failed[0][1]
    assert contents(folder)["b.png"] == before["b.png"]


def test_an_interruption_leaves_the_remaining_images_unchanged(folder: Path) -> None:
    before = contents(folder)

    def interrupted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        raise GenerationInterrupted("Interrupt was pressed.")

    fixed = write_upscaled(folder, [folder / "a.jpg", folder / "b.png"], 256, interrupted)
    assert fixed.repaired == () and len(fixed.failed) == 1 and fixed.undo is None
    assert contents(folder) == before
