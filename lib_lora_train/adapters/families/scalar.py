"""One trained factor per layer, as LyCORIS' `use_scalar`: ΔW = c · ΔW(weights), c = 0 at the start.

No matrix has to start at zero then: all are random, and the first steps train only the factor. Files do not store it:
it is multiplied into the tensor that would otherwise start at zero, as in LyCORIS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.delta_autograd import leaf
from lib_lora_train.adapters.dropout import LayerDropout
from lib_lora_train.adapters.families import lokr, lora
from lib_lora_train.adapters.families.base import Weights, base_weight, kaiming, normal
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.families.wrapper import FamilyWrapper
from lib_lora_train.adapters.flat_parameters import Slices

SCALAR = "scalar"
# ΔW is linear in these tensors of a family together, and zero where they are zero.
LINEAR_IN: Mapping[str, tuple[str, ...]] = {
    "lora": ("up",),
    "loha": ("w2_a",),
    "lokr": ("w2", "w2_b"),
    "glora": ("a2", "b2"),
}
_PRODUCTS: Mapping[str, Callable[..., Tensor]] = {"lora": lora.delta, "lokr": lokr.delta}


@dataclass(frozen=True)
class WithScalar(FamilyWrapper):
    """`inner` times a trained factor."""

    @property
    def STATE_KEYS(self) -> Mapping[str, str]:  # type: ignore[override]
        """The inner family's keys and the factor's, which is in no file."""
        return {**self.inner.STATE_KEYS, SCALAR: SCALAR}

    @property
    def SCALE_EXPONENTS(self) -> Mapping[str, float]:  # type: ignore[override]
        """Only the factor."""
        return {SCALAR: 1.0}

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """The inner family's, with zeros replaced by LyCORIS' random distributions, and a factor of 0."""
        weights = self.inner.init_weights(layer, options, generator)
        for name in LINEAR_IN[self.NAME]:
            if name in weights:
                shape = tuple(weights[name].shape)
                weights[name] = normal(shape, 0.1, generator) if self.NAME == "loha" else kaiming(shape, generator)
        return {**weights, SCALAR: torch.zeros(1)}

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """The inner family's ΔW of the weights with the factor multiplied in."""
        return self.inner.diff_weight(self.file_weights(weights), options, base)

    def file_weights(self, weights: Weights) -> dict[str, Tensor]:
        """The inner family's weights with the factor multiplied in."""
        factor, linear = weights[SCALAR], LINEAR_IN[self.NAME]
        return {n: t * factor if n in linear else t for n, t in weights.items() if n != SCALAR}

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
        """The layer's output with ΔW, from the inner family's small products if it has any."""
        if self.NAME not in _PRODUCTS:
            return super().forward(layer, x, slices, options, strength=strength, dropout=dropout)
        dtype = base_weight(layer).dtype
        tensors = self.file_weights({name: leaf(slices, name, dtype) for name in slices.positions})
        output: Tensor = layer(x)
        scale = lokr.scale_of(tensors, options) if self.NAME == "lokr" else options.scale
        return output + _PRODUCTS[self.NAME](layer, x, tensors, scale * strength, dropout)
