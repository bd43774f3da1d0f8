"""Ways to combine the updates of several LoRAs in one layer, so that they disturb each other less than in a sum.

    Δ_i  the update of file i, times its weight, shaped like the layer's weight, fp32

Each way thins out every Δ_i, then adds what is left or lets the files vote. All of them work on ΔW and not on the two
matrices of a LoRA, whose products with each other mean nothing, and layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib_lora_train.core.seeding import seed_for
from lib_lora_train.lora_tools.merge_options import MergeOptions

_WINDOW = 0.2
"""How far the chances of the smallest and the largest value of a row are apart in DELLA, at most."""


def combine(deltas: Sequence[Tensor], options: MergeOptions, *, key: str) -> Tensor:
    """The combined update of the layer called `key`, which the random choices depend on; shaped like each of them."""
    if options.method == "sum":
        return sum_of(deltas)
    thinned = []
    for number, delta in enumerate(deltas):
        generator = torch.Generator().manual_seed(seed_for(options.seed, f"merge/{key}", number))
        if options.method == "ties":
            thinned.append(trim(delta, options.density))
        elif options.method == "della":
            thinned.append(drop_small_values(delta, options.density, generator))
        else:
            thinned.append(drop(delta, options.density, generator))
    return sum_of(thinned) if options.method == "dare" else average_of_elected(thinned)


def sum_of(deltas: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(list(deltas)).sum(0) if len(deltas) > 1 else deltas[0]


def trim(delta: Tensor, density: float) -> Tensor:
    """The values with the largest magnitudes, the others 0 (TIES, Yadav et al. 2023, section 3, step 1)."""
    kept = int(density * delta.numel())
    mask = torch.zeros(delta.numel(), dtype=torch.bool)
    mask[delta.abs().flatten().topk(kept).indices] = True
    return delta * mask.view_as(delta)


def average_of_elected(deltas: Sequence[Tensor]) -> Tensor:
    """Of each value the average over the files whose sign is that of the sum of all, 0 where none has a value.

    TIES, steps 2 and 3; also the last steps of DELLA.
    """
    stacked = torch.stack(list(deltas))
    elected = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agrees = stacked.sign() == elected
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp_min(1)


def drop(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each value with the chance `density`, divided by it, else 0: the expected value stays (DARE, Yu et al. 2024)."""
    return delta * (torch.rand(delta.shape, generator=generator) < density) / density


def drop_small_values(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """As `drop`, with the chance rising in each row from its smallest to its largest magnitude.

    MAGPRUNE of DELLA (Deep et al. 2024, section 3.1): the chance to be dropped falls linearly over the ranks, from
    1 − density + ε/2 to 1 − density − ε/2, and what is kept is divided by its chance. ε is 0.2, or less where a chance
    would leave 0 to 1.
    """
    rows = delta.flatten(1)
    columns = rows.shape[1]
    window = min(_WINDOW, density, 1 - density)
    ranks = rows.abs().argsort(dim=1).argsort(dim=1).float()  # 0 for the smallest
    chances = density + window * (ranks / max(columns - 1, 1) - 0.5)
    kept = torch.rand(rows.shape, generator=generator) < chances
    return (rows * kept / chances).view_as(delta)
