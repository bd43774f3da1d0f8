"""How alike the images of a dataset are, by the latents that a run has encoded anyway.

Two images are compared as a whole: where something is counts as much as what it is. So this finds what is there twice
(another size, another file format, mirrored, a neighbouring frame) and what is nearly so. It does not find the same
subject in another pose; that is what `features.py` compares.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_SIDE = 16  # cells of a latent, after which small shifts and another size hardly matter
_ROWS = 256  # images that are compared with all others at once


def nearest_images(latents: Mapping[int, Tensor], count: int = 3) -> dict[int, list[tuple[int, float]]]:
    """For each image the up to `count` others that are most like it, the nearest first, and how alike they are.

    `latents` are (C, h, w), of any sizes. How alike: the correlation (Pearson, each channel around its own mean) of
    both as 16 × 16 cells, one of them mirrored if that is more; at most 1.
    """
    if not latents:
        return {}
    items = list(latents)
    cells = torch.stack([_cells(latents[item]) for item in items])  # (N, C, 16, 16)
    plain, mirrored = _directions(cells), _directions(cells.flip(-1))
    found: dict[int, list[tuple[int, float]]] = {}
    for start in range(0, len(items), _ROWS):
        rows = plain[start : start + _ROWS]
        alike = torch.maximum(rows @ plain.T, rows @ mirrored.T)  # (rows, N)
        alike[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = -torch.inf
        best = alike.topk(min(count, len(items) - 1), dim=1)
        for row, (values, places) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            pairs = zip(places, values, strict=True)
            found[items[start + row]] = [(items[place], min(1.0, value)) for place, value in pairs]
    return found


def _cells(latent: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(latent.float(), _SIDE)


def _directions(cells: Tensor) -> Tensor:
    """(N, C · 16 · 16) of unit length; zeros for a plain image, which is like no other."""
    centred = cells - cells.mean(dim=(2, 3), keepdim=True)
    return torch.nn.functional.normalize(centred.flatten(1), dim=1)
