"""DyLoRA (Valipour et al. 2023): a LoRA whose first rows alone are a good LoRA of smaller rank.

Each micro-batch draws how many ranks it uses; of these the last `unit` rows are trained and the earlier ones stand
still. The scale is that of the saved file, alpha / r, whatever is drawn, so that the file means in the webui what was
trained. Outside of training steps it is a plain LoRA of full rank, and so is its file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.delta_autograd import leaf
from lib_lora_train.adapters.dropout import Draw
from lib_lora_train.adapters.families.base import base_weight
from lib_lora_train.adapters.families.lora import Lora, delta
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices


class Dylora(Lora):
    """LoRA trained for every rank at once."""

    NAME = "dylora"

    def forward(
        self, layer: nn.Module, x: Tensor, slices: Slices, options: Options, *, strength: float, draw: Draw | None
    ) -> Tensor:
        """In training the drawn ranks, else all."""
        if draw is None or "mid" in slices.positions:
            return super().forward(layer, x, slices, options, strength=strength, draw=draw)
        first, end = trained_rows(options, draw.block)
        dtype = base_weight(layer).dtype
        down, up = leaf(slices, "down", dtype), leaf(slices, "up", dtype)
        used = {
            "down": torch.cat([down[:first].detach(), down[first:end]]),
            "up": torch.cat([up[:, :first].detach(), up[:, first:end]], dim=1),
        }
        output: Tensor = layer(x)
        return output + delta(layer, x, used, options.scale * strength, draw)


def trained_rows(options: Options, block: float) -> tuple[int, int]:
    """[first, end) of the ranks to train, for a number in [0, 1); those before `first` are used and stand still."""
    blocks = -(-options.rank // options.unit)
    first = int(block * blocks) * options.unit
    return first, min(first + options.unit, options.rank)
