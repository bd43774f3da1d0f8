"""What a LoRA did to an image, seen in its pixels alone: how much of it changed, and how rough its plain parts became.

- *Change*: the difference of two images of one prompt and seed, without the LoRA and with it, as a share of how much
  images of different prompts differ. 0: nothing changed. 1: another image altogether.
- *Roughness*: the standard deviation inside the plainest parts of an image, the background as a rule. A LoRA that is
  too strong or trained too long burns these parts first, before the object breaks and long before colours saturate.

When they lie: change counts a moved object like a ruined one. Roughness says nothing where the prompt asks for a
background full of details, so it is compared with the same prompt without the LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

import numpy as np
import numpy.typing as npt
from PIL import Image

_THUMBNAIL_PX = 32
_SIDE_PX, _CELL_PX = 128, 8  # roughness is measured in 16 × 16 cells
_PLAIN_SHARE = 20  # percent of the cells that are plainer than the one that counts

Pixels = npt.NDArray[np.float64]


def difference(first: Image.Image, second: Image.Image) -> float:
    """The root mean square difference of two images in their colours, 0…1, of thumbnails of 32 px."""
    return float(np.sqrt(np.mean((_pixels(first, _THUMBNAIL_PX) - _pixels(second, _THUMBNAIL_PX)) ** 2)))


def difference_of_prompts(images: Sequence[Image.Image]) -> float:
    """How much images of different prompts differ, the mean of all pairs: the 1 of `change`. 0 for a single image."""
    return fmean([difference(one, other) for one, other in combinations(images, 2)] or [0.0])


def change(before: Image.Image, after: Image.Image, one: float) -> float:
    """The difference of two images in units of `one`, as from `difference_of_prompts`; 0 if that is 0."""
    return difference(before, after) / one if one > 0 else 0.0


def roughness(image: Image.Image) -> float:
    """The standard deviation of the colours inside the plainest parts of the image, 0…1: its 20th percentile."""
    pixels = _pixels(image, _SIDE_PX)
    cells = pixels.reshape(_SIDE_PX // _CELL_PX, _CELL_PX, _SIDE_PX // _CELL_PX, _CELL_PX, 3)
    deviations = np.sqrt(cells.var(axis=(1, 3)).mean(axis=-1))
    return float(np.percentile(deviations, _PLAIN_SHARE))


def roughness_ratio(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> float:
    """The mean roughness of images with the LoRA, in units of that of the same prompts without it.

    Images without any roughness count as if they had one step of 8-bit colours.
    """
    least = 1 / 255
    return max(fmean(map(roughness, after)), least) / max(fmean(map(roughness, before)), least)


def _pixels(image: Image.Image, side: int) -> Pixels:
    """(side, side, 3), 0…1."""
    small = image.convert("RGB").resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255
