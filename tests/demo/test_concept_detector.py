"""The demo's detector finds the mascot and nothing else, also when blurred as by the tiny VAE."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from lib_lora_train.demo.demo import MASCOT


def _images(folder: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(folder.rglob("*.png"))]


def _blurred(image: Image.Image) -> Image.Image:
    """The image reduced to a quarter and enlarged again, which is blurrier than the VAE."""
    small = image.convert("RGB").resize((32, 32), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("blurred", [False, True])
def test_every_image_of_the_concept_is_detected(demo_dir: Path, blurred: bool) -> None:
    images = _images(demo_dir / "train") + _images(demo_dir / "holdout" / "concept")
    assert len(images) >= 20
    assert MASCOT.share([_blurred(p) for p in images] if blurred else images) == 1.0


def test_no_other_image_is_detected(demo_dir: Path) -> None:
    images = _images(demo_dir / "reg") + _images(demo_dir / "holdout" / "base")
    assert len(images) >= 30
    assert MASCOT.share(images) == 0.0


def test_mark_outside_the_body_does_not_count() -> None:
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 30, 60, 90), fill=(18, 178, 170))
    draw.ellipse((90, 40, 120, 70), fill=(222, 32, 140))
    assert not MASCOT.detects(image)
    draw.ellipse((25, 60, 45, 80), fill=(222, 32, 140))
    draw.ellipse((85, 35, 125, 75), fill="white")
    assert MASCOT.detects(image)
