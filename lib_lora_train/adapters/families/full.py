"""Native fine-tuning: the whole difference, ΔW itself and what is added to the bias, trained and saved.

    diff  shaped like W      diff_b  (out,), where the layer has a bias

As large as the model's own layers, in the file and several times in memory; exact in every webui.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Family, Weights, base_weight
from lib_lora_train.adapters.families.options import Options


class Full(Family):
    """Every number of the layer."""

    NAME = "full"
    STATE_KEYS = {"diff": "diff", "bias": "diff_b"}
    SHRINK = {"diff": 1.0}

    def fits(self, layer: nn.Module) -> bool:
        """Linear and ungrouped, zero-padded convolution."""
        return super().fits(layer)

    def settled(self, _layer: nn.Module, options: Options) -> Options:
        """There is no rank, and no scale."""
        return replace(options, alpha=float(options.rank))

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """Zero."""
        weights = {"diff": torch.zeros(base_weight(layer).shape)}
        return weights if layer.bias is None else {**weights, "bias": torch.zeros(base_weight(layer).shape[0])}

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW as it stands."""
        return weights["diff"]

    def diff_bias(self, weights: Weights) -> Tensor | None:
        """As it stands."""
        return weights.get("bias")

    def fixed_state(self, options: Options) -> dict[str, Tensor]:
        """Nothing: hosts would ignore an alpha."""
        return {}

    def with_fixed(self, options: Options, _fixed: Mapping[str, Tensor]) -> Options:
        """There is no scale."""
        return options
