"""The detector finds the mascot however it is drawn, blurred as by the tiny VAE too, and never in noise or ruins."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tiny_sd.emoji import NOUNS
from tiny_sd.mascot import draw_mascot, draw_mascot_scene, render_mascot_scene
from tiny_sd.scenes import COLOURS, TEXTURES, Drawings, draw_backdrop, draw_scene, render_scene

from lib_lora_train.runs.demo.concept_detector import ConceptDetector, HueRange
from lib_lora_train.runs.demo.demo import MASCOT

SAMPLES = Path(__file__).parent / "samples"
EMOJI = Path(__file__).parents[2] / "evaluation" / "emoji"
SIDE = 128


def _images(folder: Path) -> list[Image.Image]:
    return [Image.open(path) for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".webp")]


def _drawings() -> Drawings:
    return Drawings({icon: Image.open(EMOJI / f"{noun}.png").convert("RGBA") for noun, icon in NOUNS.items()})


def _blurred(image: Image.Image) -> Image.Image:
    """The image reduced to a quarter and enlarged again, which is blurrier than the VAE."""
    small = image.convert("RGB").resize((32, 32), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _renderings(*, with_companion: bool) -> list[Image.Image]:
    rng, drawings = random.Random(0), _drawings()
    scenes = [draw_mascot_scene(rng, name, with_companion=with_companion) for name in COLOURS for _ in range(20)]
    return [render_mascot_scene(scene, drawings) for scene in scenes]


# --- the concept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("blurred", [False, True])
@pytest.mark.parametrize("with_companion", [False, True])
def test_the_concept_is_detected_on_every_background_in_every_place_and_size(
    blurred: bool, with_companion: bool
) -> None:
    images = _renderings(with_companion=with_companion)
    assert len(images) == 200
    assert MASCOT.share([_blurred(image) for image in images] if blurred else images) >= 0.98


@pytest.mark.parametrize("blurred", [False, True])
def test_every_image_of_the_demo_set_is_detected(demo_dir: Path, blurred: bool) -> None:
    images = _images(demo_dir / "train") + _images(demo_dir / "holdout" / "concept")
    assert len(images) >= 20
    assert MASCOT.share([_blurred(p) for p in images] if blurred else images) == 1.0


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_textured_background_is_not_a_ruined_one(texture: str) -> None:
    images = []
    for colour in COLOURS.values():
        image = draw_backdrop(colour, texture)
        image.paste(draw_mascot(80), (24, 24), draw_mascot(80))
        images.append(image)
    assert MASCOT.share(images) == 1.0


def test_what_the_tiny_model_draws_is_detected() -> None:
    """Samples of the demo's third and fifth epoch at strengths 0.8 to 1.25, chosen by eye."""
    images = _images(SAMPLES / "right")
    assert len(images) >= 20
    assert MASCOT.share(images) >= 0.98


# --- everything else -----------------------------------------------------------------------------


def test_no_other_image_is_detected(demo_dir: Path) -> None:
    rng, drawings = random.Random(1), _drawings()
    images = _images(demo_dir / "reg") + _images(demo_dir / "holdout" / "base")
    assert len(images) >= 30
    assert MASCOT.share([*images, *(render_scene(draw_scene(rng), drawings) for _ in range(200))]) == 0.0


def test_ruined_samples_are_not_detected() -> None:
    """Samples at strength 1.5 and 2, most of them with the concept's colours in its place."""
    images = _images(SAMPLES / "ruined")
    assert len(images) >= 15
    assert MASCOT.share(images) == 0.0


@pytest.mark.parametrize("vivid", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("cells", [4, 6, 8, 16, 32, 64, 128])
def test_colour_noise_is_not_detected(cells: int, smooth: bool, vivid: bool) -> None:
    """From blotches of a quarter of the image's side to single pixels; vivid: each channel is 0 or 255."""
    rng = np.random.default_rng(cells)
    images = []
    for _ in range(40):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        filter_ = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        pixels = Image.fromarray((noise > 127).astype(np.uint8) * 255 if vivid else noise)
        images.append(pixels.resize((SIDE, SIDE), filter_))
    assert MASCOT.share(images) == 0.0


def test_noise_of_the_concepts_own_colours_is_not_detected() -> None:
    rng = np.random.default_rng(0)
    palette = np.array([(18, 178, 170), (222, 32, 140), (255, 208, 40), (255, 255, 255), (26, 24, 40)], np.uint8)
    images = [
        Image.fromarray(palette[rng.integers(0, 5, (cells, cells))]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        for cells in (6, 8, 16, 32)
        for _ in range(20)
    ]
    assert MASCOT.share(images) == 0.0


@pytest.mark.parametrize("deviation", [40, 60, 90])
def test_the_concept_on_a_ruined_background_is_not_detected(deviation: int) -> None:
    """Coarse noise of the latents' size around a mascot that is itself untouched."""
    rng, mascot, images = np.random.default_rng(0), draw_mascot(72), []
    for colour in COLOURS.values():
        noise = rng.normal(0, deviation, (SIDE // 8, SIDE // 8, 3)) + np.array(colour)
        image = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.paste(mascot, (24, 32), mascot)
        images.append(image)
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


def test_the_colours_of_a_background_are_no_parts_of_the_concept() -> None:
    detector = ConceptDetector(HueRange(160, 197, 0.03), (HueRange(-10, 10, 0.01),))
    image = Image.new("RGB", (128, 128), (222, 44, 44))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 30, 90, 90), fill=(18, 178, 170))
    assert not detector.detects(image)  # red is only around it
    blue = Image.new("RGB", (128, 128), (44, 98, 224))
    draw = ImageDraw.Draw(blue)
    draw.ellipse((30, 30, 90, 90), fill=(18, 178, 170))
    draw.ellipse((50, 50, 70, 70), fill=(222, 44, 44))
    assert detector.detects(blue)  # and a range through red has no gap at 0
