"""Does an image show the concept? A simple, stated detector: colours that belong together.

A sign is a range of vivid hues that must cover some share of the image. The concept is there
when every sign is found and each lies inside the bounding box of the first. It is meant for concepts
of known, unusual colours (the demo's mascot); it says nothing about beauty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

_LEAST_SATURATION = 115  # of 255: vivid; leaves out pastel backgrounds and the blur between two colours
_LEAST_VALUE = 60  # of 255: not nearly black

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ColourSign:
    """Vivid pixels with a hue in [low, high] degrees that cover at least `least_share` of the image."""

    low: float
    high: float
    least_share: float


@dataclass(frozen=True)
class ConceptDetector:
    """The concept's colours; the first is the body, inside which the others must lie."""

    body: ColourSign
    marks: tuple[ColourSign, ...]

    def sees(self, image: Image.Image) -> bool:
        """True when the body and every mark are found, each mark's centre within the body's box."""
        pixels = np.asarray(image.convert("RGB").convert("HSV")).astype(np.int64)
        body = _mask(pixels, self.body)
        if body.mean() < self.body.least_share:
            return False
        marks = [(_mask(pixels, mark), mark.least_share) for mark in self.marks]
        return all(mark.mean() >= least and _inside(mark, body) for mark, least in marks)

    def share(self, images: Sequence[Image.Image]) -> float:
        """Share of the images, 0…1, that show the concept; 0 for none at all."""
        return sum(self.sees(image) for image in images) / len(images) if images else 0.0


def _mask(hsv: npt.NDArray[np.int64], sign: ColourSign) -> Mask:
    hue = hsv[..., 0] * (360 / 256)  # Pillow keeps hue in 0…255
    vivid: Mask = (hsv[..., 1] >= _LEAST_SATURATION) & (hsv[..., 2] >= _LEAST_VALUE)
    found: Mask = vivid & (hue >= sign.low) & (hue <= sign.high)
    return found


def _inside(mark: Mask, body: Mask) -> bool:
    """Whether the mean position of `mark` lies in the bounding box of `body`."""
    (rows, columns), (body_rows, body_columns) = np.nonzero(mark), np.nonzero(body)
    y, x = rows.mean(), columns.mean()
    return bool(body_rows.min() <= y <= body_rows.max() and body_columns.min() <= x <= body_columns.max())
