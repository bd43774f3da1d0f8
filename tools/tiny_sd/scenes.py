"""Captioned scenes: emoji and coloured shapes on plain or textured backgrounds.

A :class:`Scene` is pure data drawn from an explicit ``random.Random``;
:func:`render_scene` turns it into pixels and :func:`caption_scene` into words.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw

from .emoji import NOUNS

SIZE_PX = 128

# Teal, magenta and turquoise are left out on purpose: the demo mascot wears them.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 44, 44),
    "orange": (247, 131, 30),
    "yellow": (252, 209, 34),
    "green": (56, 168, 74),
    "blue": (44, 98, 224),
    "purple": (130, 60, 180),
    "pink": (247, 146, 196),
    "black": (24, 24, 28),
    "white": (244, 244, 244),
    "gray": (146, 148, 150),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")
TEXTURES = ("striped", "dotted", "checkered")
POSITIONS = {
    "on the left": (36, 64),
    "on the right": (92, 64),
    "at the top": (64, 36),
    "at the bottom": (64, 92),
}
LATENT_PX = 8
SIZES_PX = {None: 72, "small": 48, "large": 104}
SIZE_IN_COMPANY_PX = 48
SIZE_OF_THREE_PX = 32
HELD_OUT_PERCENT = 10


@dataclass(frozen=True)
class Thing:
    """One kind of object: an emoji noun, or a shape with a colour."""

    noun: str
    colour: str | None = None

    @property
    def words(self) -> str:
        """'fox' or 'red circle'."""
        return f"{self.colour} {self.noun}" if self.colour else self.noun


@dataclass(frozen=True)
class Placed:
    """A thing with its left and upper edge and its width, in pixels: whole latents, see :func:`corner_near`."""

    thing: Thing
    left: int
    top: int
    size: int


@dataclass(frozen=True)
class Scene:
    """One image before it is drawn. ``kind`` is single, pair or count."""

    kind: str
    background: str
    texture: str | None
    objects: tuple[Placed, ...]
    position: str | None = None
    size_word: str | None = None
    tint: tuple[int, int, int] = (0, 0, 0)


def is_held_out(scene: Scene) -> bool:
    """True for the tenth of noun × background and noun × noun combinations kept from training.

    Pairs are held out as unordered pairs of nouns (with colours for shapes).
    """
    words = sorted({placed.thing.words for placed in scene.objects})
    key = "|".join(words) if scene.kind == "pair" else f"{words[0]}|on {scene.background}"
    return zlib.crc32(key.encode()) % 100 < HELD_OUT_PERCENT


def draw_thing(rng: random.Random, *, shape_share: float = 0.6) -> Thing:
    """A random emoji noun or coloured shape."""
    if rng.random() < shape_share:
        return Thing(rng.choice(SHAPES), rng.choice(list(COLOURS)))
    return Thing(rng.choice(list(NOUNS)))


def draw_scene(rng: random.Random, *, kind: str | None = None) -> Scene:
    """A random scene, held out or not: 54% single, 32% pairs, 14% counts."""
    chosen = kind or rng.choices(("single", "pair", "count"), (0.54, 0.32, 0.14))[0]
    return {"single": _draw_single, "pair": _draw_pair, "count": _draw_count}[chosen](rng)


def draw_training_scene(rng: random.Random, *, kind: str | None = None) -> Scene:
    """A random scene that is not held out."""
    while is_held_out(scene := draw_scene(rng, kind=kind)):
        pass
    return scene


def draw_held_out_scene(rng: random.Random, *, kind: str) -> Scene:
    """A random scene of combinations that training never showed."""
    while not is_held_out(scene := draw_scene(rng, kind=kind)):
        pass
    return scene


def corner_near(centre: tuple[int, int], size_px: int, rng: random.Random, *, spread_px: float) -> tuple[int, int]:
    """Left and upper edge, on whole latents, of something whose middle lies within about ``spread_px`` of ``centre``.

    The latents of an image moved by 8 px are its latents moved by one, so a drawing has as many appearances
    to learn as it has sizes. At any place and size it had hundreds, and drawings stayed vague.
    """
    corners = ((place + rng.uniform(-spread_px, spread_px) - size_px / 2) / LATENT_PX for place in centre)
    left, top = (LATENT_PX * round(corner) for corner in corners)
    return left, top


def _place(rng: random.Random, thing: Thing, centre: tuple[int, int], size_px: int, *, spread_px: float) -> Placed:
    return Placed(thing, *corner_near(centre, size_px, rng, spread_px=spread_px), size_px)


def _draw_background(rng: random.Random, things: tuple[Thing, ...]) -> str:
    """A background colour no shape of the scene would vanish into."""
    taken = {thing.colour for thing in things}
    return rng.choice([name for name in COLOURS if name not in taken])


def _draw_tint(rng: random.Random) -> tuple[int, int, int]:
    return rng.randint(-8, 8), rng.randint(-8, 8), rng.randint(-8, 8)


def _draw_single(rng: random.Random) -> Scene:
    thing = draw_thing(rng)
    position = rng.choice(list(POSITIONS)) if rng.random() < 0.28 else None
    size_word = None if position else rng.choices((None, "small", "large"), (0.7, 0.16, 0.14))[0]
    size_px = SIZE_IN_COMPANY_PX if position else SIZES_PX[size_word]
    spread_px = 4 if position or size_word == "large" else 8
    placed = _place(rng, thing, POSITIONS.get(position or "", (64, 64)), size_px, spread_px=spread_px)
    texture = rng.choice(TEXTURES) if rng.random() < 0.15 else None
    background = _draw_background(rng, (thing,))
    return Scene("single", background, texture, (placed,), position, size_word, _draw_tint(rng))


def _draw_pair(rng: random.Random) -> Scene:
    left = draw_thing(rng, shape_share=0.5)
    while (right := draw_thing(rng, shape_share=0.5)).words == left.words:
        pass
    objects = tuple(
        _place(rng, thing, (x, 64), SIZE_IN_COMPANY_PX, spread_px=4) for thing, x in ((left, 36), (right, 92))
    )
    background = _draw_background(rng, (left, right))
    return Scene("pair", background, None, objects, tint=_draw_tint(rng))


def _draw_count(rng: random.Random) -> Scene:
    thing = draw_thing(rng)
    centres, size_px = rng.choice((((36, 92), SIZE_IN_COMPANY_PX), ((24, 64, 104), SIZE_OF_THREE_PX)))
    objects = tuple(_place(rng, thing, (x, 64), size_px, spread_px=4) for x in centres)
    background = _draw_background(rng, (thing,))
    return Scene("count", background, None, objects, tint=_draw_tint(rng))


def with_article(words: str) -> str:
    """'an owl', 'a red circle', 'grapes'."""
    if words == "grapes":
        return words
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(words: str) -> str:
    """'foxes', 'red crosses', 'fish'."""
    if words.endswith(("fish", "grapes")):
        return words
    if words.endswith("butterfly"):
        return words[:-1] + "ies"
    if words.endswith("strawberry"):
        return words[:-1] + "ies"
    return words + ("es" if words.endswith(("s", "x", "ch")) else "s")


def _subject(scene: Scene) -> tuple[str, str]:
    """The subject as a phrase with article, and as a bare tag."""
    first = scene.objects[0].thing.words
    if scene.kind == "pair":
        second = scene.objects[1].thing.words
        return f"{with_article(first)} and {with_article(second)}", f"{first}, {second}"
    if scene.kind == "count":
        number = "two" if len(scene.objects) == 2 else "three"
        return f"{number} {plural(first)}", f"{number} {plural(first)}"
    sized = f"{scene.size_word} {first}" if scene.size_word else first
    return with_article(sized), sized


def caption_scene(scene: Scene, rng: random.Random) -> str:
    """One of several wordings of what the scene shows."""
    subject, tag = _subject(scene)
    where = f" {scene.position}" if scene.position else ""
    backdrop = f"{scene.texture} {scene.background}" if scene.texture else scene.background
    forms = (
        f"{subject}{where} on {with_article(backdrop)} background",
        f"{subject}{where}, {backdrop} background",
        f"{tag}{where}, {backdrop} background",
        f"an image of {subject}{where} on {with_article(backdrop)} background",
        f"{subject}{where} in front of {with_article(backdrop)} background",
    )
    return rng.choices(forms, (0.45, 0.15, 0.2, 0.1, 0.1))[0]


def draw_shape(shape: str, colour: tuple[int, int, int], size_px: int) -> Image.Image:
    """An anti-aliased RGBA shape that fills a ``size_px`` square."""
    side = size_px * 4
    mask = Image.new("L", (side, side))
    _SHAPE_PAINTERS[shape](ImageDraw.Draw(mask), side)
    image = Image.new("RGBA", (size_px, size_px), (*colour, 255))
    image.putalpha(mask.resize((size_px, size_px), Image.Resampling.BOX))
    return image


def _polygon(points: tuple[tuple[float, float], ...]) -> Callable[[ImageDraw.ImageDraw, int], None]:
    def paint(draw: ImageDraw.ImageDraw, side: int) -> None:
        draw.polygon([(x * side, y * side) for x, y in points], fill=255)

    return paint


def _circle(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.ellipse((0, 0, side - 1, side - 1), fill=255)


def _ring(draw: ImageDraw.ImageDraw, side: int) -> None:
    _circle(draw, side)
    inset = side * 0.27
    draw.ellipse((inset, inset, side - inset, side - inset), fill=0)


def _heart(draw: ImageDraw.ImageDraw, side: int) -> None:
    draw.ellipse((0, side * 0.05, side * 0.53, side * 0.58), fill=255)
    draw.ellipse((side * 0.47, side * 0.05, side - 1, side * 0.58), fill=255)
    points = ((0.035, 0.43), (0.5, 0.98), (0.965, 0.43), (0.5, 0.25))
    _polygon(points)(draw, side)


_STAR = (
    (0.5, 0.0), (0.62, 0.36), (1.0, 0.37), (0.7, 0.6), (0.81, 0.97),
    (0.5, 0.75), (0.19, 0.97), (0.3, 0.6), (0.0, 0.37), (0.38, 0.36),
)  # fmt: skip
_CROSS = (
    (0.34, 0.0), (0.66, 0.0), (0.66, 0.34), (1.0, 0.34), (1.0, 0.66), (0.66, 0.66),
    (0.66, 1.0), (0.34, 1.0), (0.34, 0.66), (0.0, 0.66), (0.0, 0.34), (0.34, 0.34),
)  # fmt: skip
_SHAPE_PAINTERS: dict[str, Callable[[ImageDraw.ImageDraw, int], None]] = {
    "circle": _circle,
    "ring": _ring,
    "heart": _heart,
    "square": _polygon(((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94))),
    "triangle": _polygon(((0.5, 0.05), (1.0, 0.93), (0.0, 0.93))),
    "diamond": _polygon(((0.5, 0.0), (0.88, 0.5), (0.5, 1.0), (0.12, 0.5))),
    "star": _polygon(_STAR),
    "cross": _polygon(_CROSS),
}


class Drawings:
    """RGBA drawings of things at any size, with a cache over (thing, size)."""

    def __init__(self, emoji: dict[str, Image.Image]) -> None:
        self._emoji = emoji
        self.draw = lru_cache(maxsize=8192)(self._draw)

    def _draw(self, thing: Thing, size_px: int) -> Image.Image:
        if thing.colour:
            return draw_shape(thing.noun, COLOURS[thing.colour], size_px)
        icon = self._emoji[NOUNS.get(thing.noun, thing.noun)]
        return icon.resize((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=3.0)


def draw_backdrop(colour: tuple[int, int, int], texture: str | None, size_px: int = SIZE_PX) -> Image.Image:
    """An RGB background; textures use blocks of 16 px or more, which survive an f = 8 VAE."""
    image = Image.new("RGB", (size_px, size_px), colour)
    if texture is None:
        return image
    lighter = tuple(round(c + (255 - c) * 0.42) if sum(colour) < 690 else c - 50 for c in colour)
    draw = ImageDraw.Draw(image)
    for index in range(0, size_px, 32):
        if texture == "striped":
            draw.rectangle((index, 0, index + 15, size_px), fill=lighter)
        for other in range(0, size_px, 32):
            if texture == "checkered":
                draw.rectangle((index, other, index + 15, other + 15), fill=lighter)
                draw.rectangle((index + 16, other + 16, index + 31, other + 31), fill=lighter)
            if texture == "dotted":
                draw.ellipse((index + 9, other + 9, index + 23, other + 23), fill=lighter)
    return image


def render_scene(scene: Scene, drawings: Drawings) -> Image.Image:
    """The scene as a 128 × 128 RGB image."""
    base = COLOURS[scene.background]
    red, green, blue = (min(255, max(0, c + t)) for c, t in zip(base, scene.tint, strict=True))
    image = draw_backdrop((red, green, blue), scene.texture)
    for placed in scene.objects:
        drawing = drawings.draw(placed.thing, placed.size)
        image.paste(drawing, (placed.left, placed.top), drawing)
    return image
