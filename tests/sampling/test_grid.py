"""The grid shows every image unscaled, in the right cell."""

from __future__ import annotations

import pytest
from PIL import Image, ImageFont

from lib_lora_train.sampling.grid import GridRow, compose_grid, epoch_rows


def _flat(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def _boxes(grid: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """The bounding box of exactly this colour."""
    mask = Image.new("1", grid.size)
    pixels = list(grid.convert("RGB").getdata())
    mask.putdata([pixel == colour for pixel in pixels])
    return mask.getbbox()


def test_every_image_is_unscaled_in_its_cell() -> None:
    red, green, blue, pink = (200, 0, 0), (0, 200, 0), (0, 0, 200), (250, 120, 200)
    rows = epoch_rows({1: [_flat(blue), _flat(pink)], 0: [_flat(red), _flat(green)]}, {1: "loss 0.1"})
    grid = compose_grid(["a fox", "a panda on a long, long, very long background"], rows, title="demo")
    boxes = [_boxes(grid, colour) for colour in (red, green, blue, pink)]
    assert all(box is not None and (box[2] - box[0], box[3] - box[1]) == (64, 64) for box in boxes)
    top_left, top_right, bottom_left, bottom_right = [box[:2] for box in boxes if box]
    assert top_left[1] == top_right[1] < bottom_left[1] == bottom_right[1]
    assert top_left[0] == bottom_left[0] < top_right[0] == bottom_right[0]


def test_rows_are_in_order_of_epoch_starting_without_lora() -> None:
    rows = epoch_rows({10: [], 2: [], 0: []}, {})
    assert [row.label for row in rows] == ["no LoRA", "epoch 2", "epoch 10"]


def test_a_missing_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="every cell"):
        compose_grid(["a", "b"], [GridRow("no LoRA", "", [_flat((0, 0, 0))])])


def test_images_of_different_sizes_do_not_overlap() -> None:
    wide, tall = _flat((200, 0, 0), (128, 64)), _flat((0, 200, 0), (64, 160))
    grid = compose_grid(["a", "b"], [GridRow("epoch 1", "", [wide, tall])])
    assert _boxes(grid, (200, 0, 0)) and _boxes(grid, (0, 200, 0))
    assert grid.height >= 160


def test_control_prompts_are_a_block_to_the_right() -> None:
    red, green, blue = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    row = [GridRow("epoch 1", "", [_flat(red), _flat(green), _flat(blue)])]
    lefts = []
    for control in ((), (1,)):
        boxes = [_boxes(compose_grid(["a", "b", "c"], row, control=control), colour) for colour in (red, green, blue)]
        assert all(boxes)
        lefts.append([box[0] for box in boxes if box])
    plain, grouped = lefts
    assert plain == sorted(plain)
    assert grouped[0] < grouped[2] < grouped[1]
    assert grouped[1] - grouped[2] > grouped[2] - grouped[0] == plain[1] - plain[0]


def test_any_prompt_can_be_drawn_with_pillows_old_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow 9.5, which A1111 and Forge pin, has a bitmap font of Latin-1 only."""
    old = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)
    monkeypatch.setattr("lib_lora_train.sampling.grid._font", lambda _: old())
    rows = [GridRow("epoch 1", "Verlust 0,1 …", [_flat((200, 0, 0))])]
    grid = compose_grid(["白い背景の狐, a very long prompt that must be cut somewhere"], rows, title="狐 on tiny")
    assert _boxes(grid, (200, 0, 0))
