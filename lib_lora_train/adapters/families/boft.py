"""Butterfly orthogonal fine-tuning (Liu et al. 2024): several stages of block rotations that mix all outputs.

    oft_blocks  (m, n, b, b), n · b = out, b even

Stage i first groups outputs that are 2ⁱ · b / 2 apart. Everything else is as in OFT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.dropout import LayerDropout
from lib_lora_train.adapters.families.base import Family, Weights, base_weight
from lib_lora_train.adapters.families.factorization import butterfly
from lib_lora_train.adapters.families.oft import Oft, apply_rescale, cayley_minus_identity, with_rescale
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices


class Boft(Oft):
    """A product of block rotations in butterfly order."""

    NAME = "boft"
    LAYOUTS = ({"blocks": "m n r r", "rescale?": "_ 1 ~"},)

    def fits(self, layer: nn.Module) -> bool:
        """Linear and plain convolution with an even number of outputs: a butterfly pairs them."""
        return super().fits(layer) and base_weight(layer).shape[0] % 2 == 0

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """Identity rotations, in as many stages as the number of outputs allows."""
        shape = base_weight(layer).shape
        stages, size = butterfly(shape[0], options.rank)
        return with_rescale({"blocks": torch.zeros(stages, shape[0] // size, size, size)}, shape, options)

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW, shaped like `base`, carried through the stages apart from W, so that it loses no digits."""
        blocks = weights["blocks"]
        rows = base.to(blocks.dtype)
        rotations = cayley_minus_identity(blocks, options.constraint * rows.shape[0])
        change = torch.zeros_like(rows)
        for stage, rotation in enumerate(rotations):
            half = 2**stage * blocks.shape[-1] // 2
            grouped = _transpose_groups(rows + change, 2, half).reshape(*blocks.shape[1:3], *rows.shape[1:])
            rotated = torch.einsum("nab,nb...->na...", rotation, grouped).flatten(0, 1)  # grouped: (n, b, in, …)
            change = change + _transpose_groups(rotated, half, 2)
        return apply_rescale(rows, change, weights)

    def forward(
        self,
        layer: nn.Module,
        x: Tensor,
        slices: Slices,
        options: Options,
        *,
        strength: float,
        dropout: LayerDropout | None,
    ) -> Tensor:
        """Via ΔW: the activations of all stages would take more memory than the weights."""
        return Family.forward(self, layer, x, slices, options, strength=strength, dropout=dropout)


def _transpose_groups(rows: Tensor, first: int, second: int) -> Tensor:
    """Rows in groups of first × second, each group transposed."""
    return rows.reshape(-1, first, second, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)
