"""Butterfly orthogonal fine-tuning (Liu et al. 2024): several stages of small rotations that mix all outputs.

    oft_blocks  (m, n, b, b), n · b = out, b even

Stage i first brings outputs together that are 2ⁱ · b / 2 apart. Everything else is as in OFT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.dropout import Draw
from lib_lora_train.adapters.families.base import Family, Weights, base_weight
from lib_lora_train.adapters.families.factorization import butterfly
from lib_lora_train.adapters.families.oft import Oft, minus_identity, rescaled, with_rescale
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices


class Boft(Oft):
    """A product of block rotations in butterfly order."""

    NAME = "boft"

    def fits(self, layer: nn.Module) -> bool:
        """As always, with an even number of outputs: a butterfly pairs them."""
        return super().fits(layer) and base_weight(layer).shape[0] % 2 == 0

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """No rotation, in as many stages as the outputs allow."""
        shape = base_weight(layer).shape
        stages, size = butterfly(shape[0], options.rank)
        return with_rescale({"blocks": torch.zeros(stages, shape[0] // size, size, size)}, shape, options)

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW, shaped like `base`, followed through the stages apart from W, so that none of its digits is lost."""
        blocks = weights["blocks"]
        rows = base.to(blocks.dtype)
        turns = minus_identity(blocks, options.constraint * rows.shape[0])
        change = torch.zeros_like(rows)
        for stage, turn in enumerate(turns):
            half = 2**stage * blocks.shape[-1] // 2
            together = _swapped(rows + change, 2, half).reshape(*blocks.shape[1:3], *rows.shape[1:])  # (n, b, in, …)
            turned = torch.einsum("nab,nb...->na...", turn, together).flatten(0, 1)
            change = change + _swapped(turned, half, 2)
        return rescaled(rows, change, weights)

    def forward(
        self, layer: nn.Module, x: Tensor, slices: Slices, options: Options, *, strength: float, draw: Draw | None
    ) -> Tensor:
        """By ΔW: the stages' activations would take more memory than all weights."""
        return Family.forward(self, layer, x, slices, options, strength=strength, draw=draw)


def _swapped(rows: Tensor, first: int, second: int) -> Tensor:
    """Rows in groups of first × second, transposed within each group."""
    return rows.reshape(-1, first, second, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)
