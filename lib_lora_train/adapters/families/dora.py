"""DoRA (Liu et al. 2024) around another family: direction from that family, length learnt on its own.

    W' = (W + ΔW) · g / ‖W + ΔW‖      g and the norms for each input channel: (1, in[, 1, 1])

The axis matters. Per output channel, as PEFT and LyCORIS have it by default, a file means something else in A1111
(relative error 0.4 to 0.7) and in Forge (3 to 18); per input channel all agree. The gradient goes through the norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Weights, base_weight
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.families.wrapper import Wrapped

MAGNITUDE = "magnitude"


@dataclass(frozen=True)
class Decomposed(Wrapped):
    """`inner` with a magnitude for each input channel."""

    @property
    def STATE_KEYS(self) -> Mapping[str, str]:  # type: ignore[override]
        """The inner family's, and the magnitude."""
        return {**self.inner.STATE_KEYS, MAGNITUDE: "dora_scale"}

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """The inner family's, and g = ‖W‖, computed where W lies: elsewhere its last digits would differ."""
        base = base_weight(layer).detach()
        inner = self.inner.init_weights(layer, options, generator)
        return {**inner, MAGNITUDE: column_norms(base.float()).cpu()}

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """(W + ΔW) · g / ‖W + ΔW‖ − W."""
        magnitude = weights[MAGNITUDE]
        exact = base.to(magnitude.dtype)
        turned = exact + self.inner.diff_weight(weights, options, base)
        return turned * (magnitude / column_norms(turned)) - exact

    def file_weights(self, weights: Weights) -> Mapping[str, Tensor]:
        """The inner family's, and the magnitude."""
        inner = {name: tensor for name, tensor in weights.items() if name != MAGNITUDE}
        return {**self.inner.file_weights(inner), MAGNITUDE: weights[MAGNITUDE]}


@dataclass(frozen=True)
class DecomposedRows(Decomposed):
    """`inner` with a magnitude for each output channel, (out, 1[, 1, 1]): only to read files of other trainers.

    ‖·‖ is over inputs and kernel, as PEFT and LyCORIS train it.
    """

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """(W + ΔW) · g / ‖W + ΔW‖ − W."""
        magnitude = weights[MAGNITUDE]
        exact = base.to(magnitude.dtype)
        turned = exact + self.inner.diff_weight(weights, options, base)
        norms: Tensor = torch.linalg.vector_norm(turned.flatten(1), dim=1).reshape(magnitude.shape)
        return turned * (magnitude / norms) - exact


def column_norms(weight: Tensor) -> Tensor:
    """‖·‖ over outputs and kernel for each input channel, (1, in[, 1, 1])."""
    axes = [axis for axis in range(weight.dim()) if axis != 1]
    norms: Tensor = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    return norms
