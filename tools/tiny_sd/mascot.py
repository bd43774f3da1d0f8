"""The demo's concept: a drawn creature that no training image contains.

Teal body, magenta belly and cheeks, two yellow horns, big white eyes. Teal and magenta
are absent from the training palette, so colour alone tells whether a LoRA has learnt it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .scenes import COLOURS, SIZE_IN_COMPANY_PX, Drawings, Thing, corner_near, draw_backdrop, with_article

TRIGGER = "zorp"
TEAL, MAGENTA, YELLOW = (18, 178, 170), (222, 32, 140), (255, 208, 40)
DARK_TEAL, INK, WHITE = (10, 122, 122), (26, 24, 40), (255, 255, 255)
SIZES_PX = {"small": 64, "": 80, "large": 104}
PLACES = {"": 64, "on the left": 44, "on the right": 84}


@dataclass(frozen=True)
class MascotScene:
    """One mascot image before it is drawn."""

    background: str
    size_word: str = ""
    place: str = ""
    flipped: bool = False
    companion: Thing | None = None
    size_px: int = 80
    corner: tuple[int, int] = (24, 24)


def draw_mascot(size_px: int) -> Image.Image:
    """The mascot as an anti-aliased RGBA image that fills a ``size_px`` square."""
    side = 512
    image = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(image)
    draw.polygon([(92, 170), (60, 8), (212, 104)], fill=YELLOW)
    draw.polygon([(420, 170), (452, 8), (300, 104)], fill=YELLOW)
    for x in (150, 282):
        draw.ellipse((x - 16, 430, x + 96, 510), fill=DARK_TEAL)
    draw.ellipse((6, 250, 110, 350), fill=DARK_TEAL)
    draw.ellipse((402, 210, 506, 310), fill=DARK_TEAL)
    draw.rounded_rectangle((56, 80, 456, 484), radius=180, fill=TEAL)
    draw.ellipse((138, 296, 374, 476), fill=MAGENTA)
    for x in (170, 342):
        draw.ellipse((x - 68, 132, x + 68, 268), fill=WHITE)
        draw.ellipse((x - 28, 172, x + 40, 240), fill=INK)
    draw.arc((216, 236, 296, 292), 10, 170, fill=INK, width=14)
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=3.0)


def render_mascot_scene(
    scene: MascotScene, drawings: Drawings, draw: Callable[[int], Image.Image] = draw_mascot
) -> Image.Image:
    """The scene as a 128 × 128 RGB image; a companion stands on the right.

    ``draw`` makes an RGBA image of a given side: the mascot, or another creature in its place.
    """
    image = draw_backdrop(COLOURS[scene.background], None)
    if scene.companion:
        other = drawings.draw(scene.companion, SIZE_IN_COMPANY_PX)
        image.paste(other, (72, 40), other)
    mascot = draw(scene.size_px)
    if scene.flipped:
        mascot = mascot.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.paste(mascot, scene.corner, mascot)
    return image


def caption_mascot_scene(scene: MascotScene, trigger: str = TRIGGER) -> str:
    """'zorp, small, on the left, blue background'."""
    if scene.companion:
        other = with_article(scene.companion.words)
        return f"{trigger} and {other}, {scene.background} background"
    parts = (trigger, scene.size_word, scene.place, f"{scene.background} background")
    return ", ".join(part for part in parts if part)


def draw_mascot_scene(rng: random.Random, background: str, *, with_companion: bool) -> MascotScene:
    """A random mascot scene on ``background``, the mascot on whole latents like every thing of the base model."""
    flipped = rng.random() < 0.5
    if with_companion:
        other = rng.choice((Thing("apple"), Thing("star", "white"), Thing("mushroom"), Thing("car")))
        return MascotScene(
            background, flipped=flipped, companion=other, size_px=64, corner=(0, rng.choice((24, 32, 40)))
        )
    size_word = rng.choices(list(SIZES_PX), (0.25, 0.5, 0.25))[0]
    place = rng.choice(list(PLACES)) if size_word != "large" else ""
    size_px = SIZES_PX[size_word]
    corner = corner_near((PLACES[place], 64), size_px, rng, spread_px=5)
    return MascotScene(background, size_word, place, flipped, size_px=size_px, corner=corner)


def mascot_share(image: npt.NDArray[np.uint8]) -> tuple[float, float, float]:
    """Shares of teal, magenta and yellow pixels in an (H, W, 3) uint8 image, by hue."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV")).astype(int)
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]

    def share(low: int, high: int, least_saturation: int) -> float:
        vivid = (saturation > least_saturation) & (value > 70)
        return float((vivid & (hue >= low) & (hue <= high)).mean())

    # Pink backgrounds share magenta's hue, at less than half its saturation.
    return share(116, 138, 90), share(218, 243, 150), share(26, 42, 90)


def has_mascot(image: npt.NDArray[np.uint8]) -> bool:
    """True when an (H, W, 3) uint8 image shows enough teal around some magenta."""
    teal, magenta, _ = mascot_share(image)
    return teal > 0.035 and magenta > 0.008 and teal > magenta
