"""Images whose content is known: one emoji or shape, on any background, in any place and size."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tiny_sd.mascot import draw_mascot
from tiny_sd.scenes import COLOURS, SHAPES, SIZE_IN_COMPANY_PX, SIZE_PX, corner_near, draw_shape

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
        self.paste_on(canvas)
        return canvas

    def paste_on(self, canvas: Image.Image) -> None:
        """Draw it without a background."""
        if self.colour:
            drawing = draw_shape(self.noun, COLOURS[self.colour], self.side)
        elif self.noun == "mascot":
            drawing = draw_mascot(self.side)
        else:
            drawing = (
                Image.open(EMOJI[self.noun]).convert("RGBA").resize((self.side, self.side), Image.Resampling.LANCZOS)
            )
        canvas.paste(drawing, (self.left, self.top), drawing)

    @property
    def words(self) -> str:
        """`red circle`, `fox`."""
        return f"{self.colour} {self.noun}".strip()

    @property
    def box(self) -> tuple[slice, slice]:
        """Its rows and columns in the image."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)


@dataclass(frozen=True)
class Pair:
    """Two different things side by side on one background."""

    left: Placed
    right: Placed

    @property
    def caption(self) -> str:
        """`a red circle and a fox on a blue background`."""
        return f"a {self.left.words} and a {self.right.words} on a {self.left.background} background"

    def image(self) -> Image.Image:
        """128 × 128 RGB."""
        canvas = self.left.image()
        self.right.paste_on(canvas)
        return canvas


def pair_scenes(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of emoji and shapes, as the model was trained on: 48 px each, at about the same places."""
    rng = random.Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < count:
        background, *colours = rng.sample(list(COLOURS), 3)
        first, second = (_placed_near(x, rng, background, colour) for x, colour in zip((36, 92), colours, strict=True))
        if first.words != second.words:
            pairs.append(Pair(first, second))
    return pairs


def _placed_near(x: int, rng: random.Random, background: str, colour: str) -> Placed:
    """An emoji or a shape in this colour, near the middle height."""
    noun = rng.choice(list(EMOJI)) if rng.random() < 0.5 else rng.choice(SHAPES)
    left, top = corner_near((x, SIZE_PX // 2), SIZE_IN_COMPANY_PX, rng, spread_px=4)
    return Placed(noun, colour if noun in SHAPES else "", background, left, top, SIZE_IN_COMPANY_PX)


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
