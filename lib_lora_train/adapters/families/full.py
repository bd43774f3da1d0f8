"""Native fine-tuning: the full difference, ΔW itself and the bias update, is trained and saved.

    diff  shaped like W      diff_b  (out,), if the layer has a bias

As large as the model's layers in the file, and several times that in memory; exact in every webui.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Family, Weights, base_weight
from lib_lora_train.adapters.families.options import Options


class Full(Family):
    """All weights of the layer."""

    NAME = "full"
    STATE_KEYS = {"diff": "diff", "bias": "diff_b"}
    SCALE_EXPONENTS = {"diff": 1.0}
    LAYOUTS: ClassVar[tuple[Mapping[str, str], ...]] = ({"diff": "o i *k", "bias?": "o"}, {"diff": "c", "bias?": "c"})

    def adjust_options(self, _layer: nn.Module, options: Options) -> Options:
        """alpha = rank: there is no rank and no scale."""
        return replace(options, alpha=float(options.rank))

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """Zeros."""
        weights = {"diff": torch.zeros(base_weight(layer).shape)}
        return weights if layer.bias is None else {**weights, "bias": torch.zeros(base_weight(layer).shape[0])}

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW, the trained tensor itself."""
        return weights["diff"]

    def diff_bias(self, weights: Weights) -> Tensor | None:
        """The trained bias update; None if the layer has no bias."""
        return weights.get("bias")

    def fixed_state(self, options: Options) -> dict[str, Tensor]:
        """Nothing: webuis ignore alpha here."""
        return {}

    def with_fixed(self, options: Options, _fixed: Mapping[str, Tensor]) -> Options:
        """The options unchanged: there is no scale."""
        return options
