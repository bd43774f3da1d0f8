"""A simple concept detector based on colours.

Each colour is a range of vivid hues that must cover some share of the image. The concept is detected if every colour
is found and the marks are inside the bounding box of the body. It suits concepts with known, unusual colours such as
the demo's mascot, and says nothing about image quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

_MIN_SATURATION = 115  # of 255; excludes pastel backgrounds and blurred edges between two colours
_MIN_VALUE = 60  # of 255; excludes nearly black pixels

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class HueRange:
    """Vivid pixels with a hue in [low, high] degrees that cover at least `min_share` of the image."""

    low: float
    high: float
    min_share: float


@dataclass(frozen=True)
class ConceptDetector:
    """The concept's colours: a body, and marks that must be inside it."""

    body: HueRange
    marks: tuple[HueRange, ...]

    def detects(self, image: Image.Image) -> bool:
        """Whether the body and every mark are found, with each mark's centre inside the body's bounding box."""
        pixels = np.asarray(image.convert("RGB").convert("HSV")).astype(np.int64)
        body = _mask(pixels, self.body)
        if body.mean() < self.body.min_share:
            return False
        marks = [(_mask(pixels, mark), mark.min_share) for mark in self.marks]
        return all(mark.mean() >= min_share and _inside(mark, body) for mark, min_share in marks)

    def share(self, images: Sequence[Image.Image]) -> float:
        """Share of the images, 0…1, that show the concept; 0 for an empty list."""
        return sum(self.detects(image) for image in images) / len(images) if images else 0.0


def _mask(hsv: npt.NDArray[np.int64], hues: HueRange) -> Mask:
    hue = hsv[..., 0] * (360 / 256)  # Pillow keeps hue in 0…255
    vivid: Mask = (hsv[..., 1] >= _MIN_SATURATION) & (hsv[..., 2] >= _MIN_VALUE)
    found: Mask = vivid & (hue >= hues.low) & (hue <= hues.high)
    return found


def _inside(mark: Mask, body: Mask) -> bool:
    """Whether the mean position of `mark` is inside the bounding box of `body`."""
    (rows, columns), (body_rows, body_columns) = np.nonzero(mark), np.nonzero(body)
    y, x = rows.mean(), columns.mean()
    return bool(body_rows.min() <= y <= body_rows.max() and body_columns.min() <= x <= body_columns.max())
