"""The concepts of `benchmarks/advisor.py`: creatures drawn by code, in colours that the tiny model has never seen.

Each has its trigger word, its drawing and a detector that knows nothing of the trainer's own measures: the hues of its
body and marks. Teal, lime and magenta are in none of the tiny model's training images.

`CHOOSING` may be looked at while the advisor's rules are chosen. `HELD_OUT` may not: they are used once the rules are
final, and only to count how often these are right.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from tiny_sd.emoji import NOUNS
from tiny_sd.mascot import caption_mascot_scene, draw_mascot, draw_mascot_scene, render_mascot_scene
from tiny_sd.scenes import Drawings

from lib_lora_train.runs.demo.concept_detector import ConceptDetector, HueRange
from lib_lora_train.runs.demo.demo import MASCOT

BACKGROUNDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")  # as in the demo's dataset
COMPANION_EVERY = 5
ROOT = Path(__file__).parent.parent
EMOJI = ROOT / "tests" / "evaluation" / "emoji"

TEAL, LIME, MAGENTA = (18, 178, 170), (158, 222, 20), (214, 30, 190)
INK, WHITE = (26, 24, 40), (255, 255, 255)
_SIDE = 512  # of a drawing before it is reduced


@dataclass(frozen=True)
class BenchmarkConcept:
    """A creature: its trigger word, what draws it (RGBA, by its side in px), and what finds it."""

    trigger: str
    draw: Callable[[int], Image.Image]
    detector: ConceptDetector


def _teal(min_share: float) -> HueRange:
    return HueRange(152, 197, min_share)


def _lime(min_share: float) -> HueRange:
    return HueRange(64, 108, min_share)


def _magenta(min_share: float) -> HueRange:
    return HueRange(288, 345, min_share)


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGBA", (_SIDE, _SIDE))
    return image, ImageDraw.Draw(image)


def _reduced(image: Image.Image, size_px: int) -> Image.Image:
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=3.0)


def draw_plim(size_px: int) -> Image.Image:
    """A lime robot: a box with an antenna, feet and a magenta screen that has two white eyes."""
    image, draw = _canvas()
    draw.rectangle((240, 10, 272, 120), fill=INK)
    draw.ellipse((216, 0, 296, 72), fill=MAGENTA)
    for x in (110, 310):
        draw.rectangle((x, 440, x + 92, 508), fill=INK)
    draw.rounded_rectangle((40, 90, 472, 460), radius=40, fill=LIME)
    draw.rounded_rectangle((110, 150, 402, 330), radius=30, fill=MAGENTA)
    for x in (180, 332):
        draw.ellipse((x - 36, 200, x + 36, 280), fill=WHITE)
    return _reduced(image, size_px)


def draw_vask(size_px: int) -> Image.Image:
    """A magenta jellyfish: a dome with two teal spots, on five legs."""
    image, draw = _canvas()
    for x in range(70, 440, 82):
        draw.rounded_rectangle((x, 280, x + 46, 504), radius=22, fill=MAGENTA)
    draw.pieslice((16, 10, 496, 590), 180, 360, fill=MAGENTA)
    for x in (160, 352):
        draw.ellipse((x - 70, 110, x + 70, 260), fill=TEAL)
        draw.ellipse((x - 24, 160, x + 24, 210), fill=INK)
    return _reduced(image, size_px)


def draw_drux(size_px: int) -> Image.Image:
    """A lime cone with a teal sash, one eye and a white foot."""
    image, draw = _canvas()
    draw.polygon([(256, 4), (500, 450), (12, 450)], fill=LIME)
    draw.polygon([(153, 192), (359, 192), (418, 300), (94, 300)], fill=TEAL)
    draw.ellipse((196, 320, 316, 430), fill=WHITE)
    draw.ellipse((232, 350, 288, 406), fill=INK)
    draw.rounded_rectangle((40, 440, 472, 508), radius=30, fill=WHITE)
    return _reduced(image, size_px)


def draw_menk(size_px: int) -> Image.Image:
    """A magenta bird: a round body with a lime wing, a white beak and two black legs."""
    image, draw = _canvas()
    for x in (190, 290):
        draw.rectangle((x, 400, x + 28, 508), fill=INK)
    draw.polygon([(380, 130), (510, 190), (380, 250)], fill=WHITE)
    draw.ellipse((20, 20, 440, 440), fill=MAGENTA)
    draw.polygon([(50, 210), (270, 190), (170, 400)], fill=LIME)
    draw.ellipse((290, 90, 370, 170), fill=WHITE)
    draw.ellipse((318, 112, 356, 150), fill=INK)
    return _reduced(image, size_px)


CHOOSING: tuple[BenchmarkConcept, ...] = (
    BenchmarkConcept("zorp", draw_mascot, MASCOT),
    BenchmarkConcept("plim", draw_plim, ConceptDetector(_lime(0.03), (_magenta(0.006),))),
    BenchmarkConcept("vask", draw_vask, ConceptDetector(_magenta(0.03), (_teal(0.006),))),
)
HELD_OUT: tuple[BenchmarkConcept, ...] = (
    BenchmarkConcept("drux", draw_drux, ConceptDetector(_lime(0.03), (_teal(0.006),))),
    BenchmarkConcept("menk", draw_menk, ConceptDetector(_magenta(0.03), (_lime(0.006),))),
)
CONCEPTS: dict[str, BenchmarkConcept] = {concept.trigger: concept for concept in (*CHOOSING, *HELD_OUT)}


@cache
def drawings() -> Drawings:
    """The tiny model's own things, for companions."""
    return Drawings({icon: Image.open(EMOJI / f"{noun}.png").convert("RGBA") for noun, icon in NOUNS.items()})


def concept_pairs(concept: BenchmarkConcept, count: int, seed: int) -> list[tuple[Image.Image, str]]:
    """`count` images of the concept with their captions, in scenes like the demo's."""
    rng, pairs = random.Random(seed), []
    for number in range(count):
        scene = draw_mascot_scene(
            rng,
            BACKGROUNDS[number % len(BACKGROUNDS)],
            with_companion=number % COMPANION_EVERY == COMPANION_EVERY - 1,
        )
        image = render_mascot_scene(scene, drawings(), concept.draw)
        pairs.append((image, caption_mascot_scene(scene, concept.trigger)))
    return pairs


def save_concept(folder: Path, concept: BenchmarkConcept, count: int, seed: int) -> None:
    """Write numbered `NN.png` and `NN.txt` into the new `folder`."""
    folder.mkdir(parents=True)
    for number, (image, caption) in enumerate(concept_pairs(concept, count, seed), 1):
        image.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")
