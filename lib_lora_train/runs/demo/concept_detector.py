"""A concept detector based on colours, for concepts with known, unusual colours such as the demo's mascot.

An image shows the concept if

- it has a *surrounding*: most of what lies around the body has one colour, or the two of a textured background. Noise,
  and the ruined backgrounds of a LoRA at too high a strength, have hundreds. Colours of the surrounding never count as
  parts of the concept;
- the *body*'s hue covers enough of the image, close together: scattered pixels of the right hue are no body;
- every *mark*'s hue covers enough of the image, mostly within the body.

Limits: it says nothing about shapes, and little about quality. A blurred blob of the right colours counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

_MIN_SATURATION = 115  # of 255; excludes pastel backgrounds and blurred edges between two colours
_MIN_VALUE = 60  # of 255; excludes nearly black pixels

_SAME_COLOUR = 20  # RGB distance of 0…441 within which two pixels have one colour: the model's own backgrounds do
_LEAST_EVEN_SHARE = 0.78  # of the surrounding: what the model draws well has 0.86 and more, ruined ones up to 0.7
_LEAST_SURROUNDING = 0.12  # of the image: a mascot of 0.8 of its side leaves 0.25, noise almost nothing
_LEAST_COLOUR_SHARE = 0.08  # of the surrounding: fewer pixels are no second colour of a texture
_LEAST_BODY_DENSITY = 0.17  # of the body's bounding box: eyes and belly leave at least 0.35, noise has 0.1
_LEAST_MARK_INSIDE = 0.6  # of a mark's pixels; half of them would be in a box of half the image by chance
_MARGIN = 0.12  # of the image's side, around the body's bounding box
_OUTLIERS = 0.05  # of a colour's pixels at each end of its bounding box, which stray pixels would otherwise widen

Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HueRange:
    """Vivid pixels with a hue in [low, high] degrees that cover at least `min_share` of the image.

    A range through red has a `low` below 0.
    """

    low: float
    high: float
    min_share: float


@dataclass(frozen=True)
class Finding:
    """What was measured in an image, each 0…1.

    `body` and `marks` are shares of the image, `density` that of the body in its bounding box, `inside` the share of
    each mark in that box, `evenness` the share of the surrounding that has its one or two colours.
    """

    body: float
    density: float
    evenness: float
    marks: tuple[float, ...]
    inside: tuple[float, ...]


@dataclass(frozen=True)
class ConceptDetector:
    """The concept's colours: a body, and marks that must be inside it."""

    body: HueRange
    marks: tuple[HueRange, ...]

    def detects(self, image: Image.Image) -> bool:
        """Whether the image shows the concept on a surrounding that is not ruined."""
        found = self.find(image)
        return (
            found.body >= self.body.min_share
            and found.density >= _LEAST_BODY_DENSITY
            and found.evenness >= _LEAST_EVEN_SHARE
            and all(share >= mark.min_share for share, mark in zip(found.marks, self.marks, strict=True))
            and all(inside >= _LEAST_MARK_INSIDE for inside in found.inside)
        )

    def find(self, image: Image.Image) -> Finding:
        """The measurements behind `detects`."""
        rgb = np.asarray(image.convert("RGB")).astype(np.int64)
        hsv = np.asarray(image.convert("RGB").convert("HSV")).astype(np.int64)
        body = _mask(hsv, self.body)
        colours = _surrounding_colours(rgb[~(body | _grown(_box(body)))])
        body &= ~_has_a_colour(rgb, colours)
        box = _box(body)
        around = _grown(box)
        marks = [_mask(hsv, mark) & ~_has_a_colour(rgb, colours) for mark in self.marks]
        return Finding(
            body=float(body.mean()),
            density=_share(body, box),
            evenness=_share(_has_a_colour(rgb, colours), ~around) if (~around).mean() >= _LEAST_SURROUNDING else 0.0,
            marks=tuple(float(mark.mean()) for mark in marks),
            inside=tuple(_share(around, mark) for mark in marks),
        )

    def share(self, images: Sequence[Image.Image]) -> float:
        """Share of the images, 0…1, that show the concept; 0 for an empty list."""
        return sum(self.detects(image) for image in images) / len(images) if images else 0.0


def _mask(hsv: Pixels, hues: HueRange) -> Mask:
    hue = hsv[..., 0] * (360 / 256)  # Pillow keeps hue in 0…255
    vivid: Mask = (hsv[..., 1] >= _MIN_SATURATION) & (hsv[..., 2] >= _MIN_VALUE)
    found: Mask = vivid & ((hue - hues.low) % 360 <= hues.high - hues.low)
    return found


def _share(part: Mask, whole: Mask) -> float:
    """The share of `whole` that is also `part`; 0 where `whole` is empty."""
    return float(part[whole].mean()) if whole.any() else 0.0


def _box(mask: Mask) -> Mask:
    """The bounding box of `mask` without its outliers; nothing if it is empty."""
    box = np.zeros_like(mask)
    if mask.any():
        edges = [np.quantile(places, (_OUTLIERS, 1 - _OUTLIERS), method="nearest") for places in np.nonzero(mask)]
        (top, bottom), (left, right) = edges
        box[top : bottom + 1, left : right + 1] = True
    return box


def _grown(box: Mask) -> Mask:
    """The box with a margin: marks such as a belly may reach beyond what is left of the body around them."""
    grown = np.zeros_like(box)
    if box.any():
        rows, columns = np.nonzero(box)
        margin = round(_MARGIN * len(box))
        top, left = max(0, rows.min() - margin), max(0, columns.min() - margin)
        grown[top : rows.max() + margin + 1, left : columns.max() + margin + 1] = True
    return grown


def _surrounding_colours(pixels: Pixels) -> list[Pixels]:
    """The one or two colours that most of (N, 3) RGB pixels have; none without pixels."""
    colours: list[Pixels] = []
    total = len(pixels)
    while len(colours) < 2 and len(pixels) > _LEAST_COLOUR_SHARE * total:
        bins = (pixels // 32) @ np.array([64, 8, 1])
        most = np.bincount(bins).argmax()
        colour = np.median(pixels[bins == most], axis=0).astype(np.int64)
        colours.append(colour)
        pixels = pixels[np.linalg.norm(pixels - colour, axis=-1) > _SAME_COLOUR]
    return colours


def _has_a_colour(rgb: Pixels, colours: Sequence[Pixels]) -> Mask:
    mask = np.zeros(rgb.shape[:2], dtype=np.bool_)
    for colour in colours:
        mask |= np.linalg.norm(rgb - colour, axis=-1) <= _SAME_COLOUR
    return mask
