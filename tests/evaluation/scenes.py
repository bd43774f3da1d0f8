"""Images whose content is known: one emoji or shape, on any background, in any place and size."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tiny_sd.mascot import draw_mascot
from tiny_sd.scenes import COLOURS, SHAPES, SIZE_PX, draw_shape

EMOJI = {path.stem: path for path in sorted((Path(__file__).parent / "emoji").glob("*.png"))}
SIZES_PX = (48, 64, 80, 104)
_CELL_PX = 8


@dataclass(frozen=True)
class Placed:
    """`noun` in `colour` ("" for emoji) on a background, with the left upper corner and the side in px."""

    noun: str
    colour: str
    background: str
    left: int
    top: int
    side: int

    @property
    def half(self) -> tuple[bool, bool]:
        """Whether its centre is in the left half and in the upper half."""
        return self.left + self.side / 2 < SIZE_PX / 2, self.top + self.side / 2 < SIZE_PX / 2

    def image(self) -> Image.Image:
        """128 × 128 RGB."""
        canvas = Image.new("RGB", (SIZE_PX, SIZE_PX), COLOURS[self.background])
        if self.colour:
            drawing = draw_shape(self.noun, COLOURS[self.colour], self.side)
        elif self.noun == "mascot":
            drawing = draw_mascot(self.side)
        else:
            drawing = (
                Image.open(EMOJI[self.noun]).convert("RGBA").resize((self.side, self.side), Image.Resampling.LANCZOS)
            )
        canvas.paste(drawing, (self.left, self.top), drawing)
        return canvas


def emoji_scenes(each: int, seed: int = 0) -> list[Placed]:
    """`each` scenes of every emoji and of the demo's mascot."""
    rng = random.Random(seed)
    return [scene for noun in (*EMOJI, "mascot") for scene in _scenes(noun, each, rng, coloured=False)]


def shape_scenes(each: int, seed: int = 0) -> list[Placed]:
    """`each` scenes of every shape, in random colours other than the background's."""
    rng = random.Random(seed)
    return [scene for noun in SHAPES for scene in _scenes(noun, each, rng, coloured=True)]


def _scenes(noun: str, count: int, rng: random.Random, *, coloured: bool) -> Iterator[Placed]:
    for _ in range(count):
        background, colour = rng.sample(list(COLOURS), 2)
        side = rng.choice(SIZES_PX)
        left, top = (rng.randrange(0, (SIZE_PX - side) // _CELL_PX + 1) * _CELL_PX for _ in "xy")
        yield Placed(noun, colour if coloured else "", background, left, top, side)
