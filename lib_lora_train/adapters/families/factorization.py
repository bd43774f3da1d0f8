"""How some families split a layer's sizes into factors; integers only, no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lib_lora_train.adapters.families.options import Options


def factorisation(size: int, factor: int) -> tuple[int, int]:
    """`size` as (small, big): by `factor` if it divides, else the most balanced pair with a small side ≤ `factor`.

    -1: no bound. LyCORIS' rule, so that the same settings give files of the same shapes.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    bound = size if factor <= 0 else factor
    small = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0 and n <= bound)
    return small, size // small


def butterfly(size: int, max_width: int) -> tuple[int, int]:
    """(stages, block width): the widest even block up to `max_width` that divides `size`, then as many stages as fit.

    The smallest width is 2, and `size` must be even. Stage i needs blocks of twice the width of stage i − 1.
    """
    width = max(b for b in range(2, max(max_width, 2) + 1, 2) if size % b == 0)
    stages = 1
    while size % (width << stages) == 0:
        stages += 1
    return stages, width


def lokr_shapes(shape: Sequence[int], options: Options) -> dict[str, tuple[int, ...]]:
    """Short name → shape, in the order of `Lokr.STATE_KEYS`."""
    (o1, o2), (i1, i2) = factorisation(shape[0], options.factor), factorisation(shape[1], options.factor)
    rank, kernel = options.rank, tuple(shape[2:])
    shapes: dict[str, tuple[int, ...]] = {}
    if options.decompose_both and not options.full_matrix and rank < max(o1, i1) / 2:
        shapes |= {"w1_a": (o1, rank), "w1_b": (rank, i1)}
    else:
        shapes["w1"] = (o1, i1)
    if options.full_matrix or rank >= max(o2, i2) / 2:
        shapes["w2"] = (o2, i2, *kernel)
    elif options.use_tucker and kernel not in ((), (1, 1)):
        shapes |= {"w2_a": (rank, o2), "w2_b": (rank, i2), "t2": (rank, rank, *kernel)}
    else:
        shapes |= {"w2_a": (o2, rank), "w2_b": (rank, i2 * math.prod(kernel))}
    return shapes
