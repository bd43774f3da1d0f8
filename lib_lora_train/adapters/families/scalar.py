"""One trained factor for each layer's whole update, as LyCORIS' `use_scalar`: ΔW = c · ΔW(weights), c = 0 at the start.

No matrix then has to begin with zeros: all of them are random, and the first steps move the factor alone. Files do not
know it: there it is multiplied into the tensor that begins with zeros elsewhere, as LyCORIS does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.delta_autograd import leaf
from lib_lora_train.adapters.dropout import Draw
from lib_lora_train.adapters.families import lokr, lora
from lib_lora_train.adapters.families.base import Weights, base_weight, kaiming, normal
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.families.wrapper import Wrapped
from lib_lora_train.adapters.flat_parameters import Slices

SCALAR = "scalar"
# ΔW is linear in these tensors of a family together, and zero where they are.
_LINEAR_IN: Mapping[str, tuple[str, ...]] = {
    "lora": ("up",),
    "loha": ("w2_a",),
    "lokr": ("w2", "w2_b"),
    "glora": ("a2", "b2"),
}
_PRODUCTS: Mapping[str, Callable[..., Tensor]] = {"lora": lora.delta, "lokr": lokr.delta}


@dataclass(frozen=True)
class Scaled(Wrapped):
    """`inner` times a trained factor."""

    @property
    def STATE_KEYS(self) -> Mapping[str, str]:  # type: ignore[override]
        """The inner family's, and the factor, which no file has."""
        return {**self.inner.STATE_KEYS, SCALAR: SCALAR}

    @property
    def SHRINK(self) -> Mapping[str, float]:  # type: ignore[override]
        """The factor alone."""
        return {SCALAR: 1.0}

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """The inner family's with no zeros but the factor, in LyCORIS' distributions."""
        weights = self.inner.init_weights(layer, options, generator)
        for name in _LINEAR_IN[self.NAME]:
            if name in weights:
                shape = tuple(weights[name].shape)
                weights[name] = normal(shape, 0.1, generator) if self.NAME == "loha" else kaiming(shape, generator)
        return {**weights, SCALAR: torch.zeros(1)}

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """As the inner family, of the weights with the factor in them."""
        return self.inner.diff_weight(self.file_weights(weights), options, base)

    def file_weights(self, weights: Weights) -> dict[str, Tensor]:
        """The inner family's weights with the factor multiplied in."""
        factor, linear = weights[SCALAR], _LINEAR_IN[self.NAME]
        return {n: t * factor if n in linear else t for n, t in weights.items() if n != SCALAR}

    def forward(
        self, layer: nn.Module, x: Tensor, slices: Slices, options: Options, *, strength: float, draw: Draw | None
    ) -> Tensor:
        """The layer's output with ΔW, in the inner family's small products where it has some."""
        if self.NAME not in _PRODUCTS:
            return super().forward(layer, x, slices, options, strength=strength, draw=draw)
        dtype = base_weight(layer).dtype
        tensors = self.file_weights({name: leaf(slices, name, dtype) for name in slices.positions})
        output: Tensor = layer(x)
        scale = lokr.scale_of(tensors, options) if self.NAME == "lokr" else options.scale
        return output + _PRODUCTS[self.NAME](layer, x, tensors, scale * strength, draw)
