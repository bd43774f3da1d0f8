"""DoRA (Liu et al. 2024) around another family: that family trains the direction, a magnitude is trained separately.

    W' = (W + ΔW) · g / ‖W + ΔW‖      g and the norms per input channel: (1, in[, 1, 1])

The axis matters. Files with one magnitude per output channel, the default of PEFT, LyCORIS and ai-toolkit, have another
effect in every webui (`config/family_support.py`); per input channel all agree. The norm is differentiated too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Weights, base_weight
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.families.wrapper import FamilyWrapper

MAGNITUDE = "magnitude"


@dataclass(frozen=True)
class Dora(FamilyWrapper):
    """`inner` with a magnitude per input channel."""

    DEPENDS_ON_MODEL = True

    @property
    def STATE_KEYS(self) -> Mapping[str, str]:  # type: ignore[override]
        """The inner family's keys and the magnitude's."""
        return {**self.inner.STATE_KEYS, MAGNITUDE: "dora_scale"}

    @property
    def LAYOUTS(self) -> tuple[Mapping[str, str], ...]:  # type: ignore[override]
        """The inner family's, with a magnitude per input or output channel."""
        return tuple({**inner, MAGNITUDE: axis} for inner in self.inner.LAYOUTS for axis in ("1 _ ~", "_ 1 ~"))

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """The inner family's, and g = ‖W‖, computed on W's device: on another its last digits would differ."""
        base = base_weight(layer).detach()
        inner = self.inner.init_weights(layer, options, generator)
        return {**inner, MAGNITUDE: column_norms(base.float()).cpu()}

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """(W + ΔW) · g / ‖W + ΔW‖ − W."""
        magnitude = weights[MAGNITUDE]
        exact = base.to(magnitude.dtype)
        direction = exact + self.inner.diff_weight(weights, options, base)
        return direction * (magnitude / column_norms(direction)) - exact

    def file_weights(self, weights: Weights) -> Mapping[str, Tensor]:
        """The inner family's keys and the magnitude's."""
        inner = {name: tensor for name, tensor in weights.items() if name != MAGNITUDE}
        return {**self.inner.file_weights(inner), MAGNITUDE: weights[MAGNITUDE]}


@dataclass(frozen=True)
class RowDora(Dora):
    """`inner` with a magnitude per output channel, (out, 1[, 1, 1]); only for files of other trainers.

    ‖·‖ is over inputs and kernel, as in PEFT and LyCORIS. A run that continues such a file trains and saves it so.
    """

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """The inner family's, and g = ‖W‖ of each output channel, (out, 1[, 1, 1])."""
        base = base_weight(layer).detach()
        return {**self.inner.init_weights(layer, options, generator), MAGNITUDE: row_norms(base.float()).cpu()}

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """(W + ΔW) · g / ‖W + ΔW‖ − W."""
        magnitude = weights[MAGNITUDE]
        exact = base.to(magnitude.dtype)
        direction = exact + self.inner.diff_weight(weights, options, base)
        return direction * (magnitude / row_norms(direction)) - exact


def column_norms(weight: Tensor) -> Tensor:
    """‖·‖ of each input channel, over outputs and kernel, (1, in[, 1, 1])."""
    axes = [axis for axis in range(weight.dim()) if axis != 1]
    norms: Tensor = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    return norms


def row_norms(weight: Tensor) -> Tensor:
    """‖·‖ of each output channel, over inputs and kernel, (out, 1[, 1, 1])."""
    norms: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
    return norms
