"""The colours of what stands out from the border of an image: its palette, and how alike two of them are.

Diffusion features know shapes well and colours badly. A palette is the opposite: it knows a character's colours, and
nothing of how they are arranged. The intersection of two histograms is Swain & Ballard's (Color Indexing, 1991).

Limits: what has the colour of the border is missing, and an object that fills the border counts as background.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LEVELS = 4  # of each of the three colours
_STANDS_OUT = 0.35  # of the largest distance from the border's colour, as where features crop an image

Pixels = npt.NDArray[np.float64]


def palette(thumbnail: Pixels) -> Pixels:
    """The shares (64,) of 4 × 4 × 4 colours among the pixels that stand out, of an image (3, h, w) of 0…1.

    They add up to 1. In an image of one colour, all pixels count.
    """
    pixels = thumbnail.transpose(1, 2, 0)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distances = np.linalg.norm(pixels - np.median(border, axis=0), axis=-1)
    standing_out = pixels[distances >= _STANDS_OUT * distances.max()]
    bins = np.clip((standing_out * _LEVELS).astype(int), 0, _LEVELS - 1)
    counts = np.bincount(bins @ np.array([_LEVELS**2, _LEVELS, 1]), minlength=_LEVELS**3)
    shares: Pixels = counts / counts.sum()
    return shares


def palette_similarity(first: Pixels, second: Pixels) -> float:
    """The share that two palettes have in common, 0…1."""
    return float(np.minimum(first, second).sum())
