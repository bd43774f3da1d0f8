"""DyLoRA (Valipour et al. 2023): a LoRA that can be cut to its first rows and is still a good LoRA of smaller rank.

Each micro-batch uses a random number of ranks; of these the last `unit` rows are trained and the earlier ones are
frozen. The scale is always that of the saved file, alpha / r, so that the file has the trained effect in the webui.
Outside training it is a plain LoRA of full rank, and so is its file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.delta_autograd import leaf
from lib_lora_train.adapters.dropout import LayerDropout
from lib_lora_train.adapters.families.base import base_weight
from lib_lora_train.adapters.families.lora import Lora, delta
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices


class Dylora(Lora):
    """LoRA trained for every rank at once."""

    NAME = "dylora"

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
        """The layer's output with ΔW: of the random ranks in training, else of all."""
        if dropout is None or "mid" in slices.positions:
            return super().forward(layer, x, slices, options, strength=strength, dropout=dropout)
        first, end = trained_rows(options, dropout.dylora_position)
        dtype = base_weight(layer).dtype
        down, up = leaf(slices, "down", dtype), leaf(slices, "up", dtype)
        used = {
            "down": torch.cat([down[:first].detach(), down[first:end]]),
            "up": torch.cat([up[:, :first].detach(), up[:, first:end]], dim=1),
        }
        output: Tensor = layer(x)
        return output + delta(layer, x, used, options.scale * strength, dropout)


def trained_rows(options: Options, position: float) -> tuple[int, int]:
    """[first, end) of the ranks to train, for a position in [0, 1); those before `first` are used but frozen."""
    blocks = -(-options.rank // options.unit)
    first = int(position * blocks) * options.unit
    return first, min(first + options.unit, options.rank)
