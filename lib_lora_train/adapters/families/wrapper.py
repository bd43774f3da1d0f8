"""A family that wraps another one and delegates to it whatever a subclass does not override."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Family, Weights
from lib_lora_train.adapters.families.options import Options


@dataclass(frozen=True)
class FamilyWrapper(Family):
    """`inner`, with its weights or ΔW changed by a subclass."""

    inner: Family

    @property
    def NAME(self) -> str:  # type: ignore[override]
        """The inner family's: the wrapper has a separate setting."""
        return self.inner.NAME

    @property
    def DEPENDS_ON_MODEL(self) -> bool:  # type: ignore[override]
        return self.inner.DEPENDS_ON_MODEL

    def update_shape(self, weights: Weights) -> tuple[int, ...]:
        return self.inner.update_shape({n: tensor for n, tensor in weights.items() if n in self.inner.STATE_KEYS})

    def fits(self, layer: nn.Module) -> bool:
        return self.inner.fits(layer)

    def adjust_options(self, layer: nn.Module, options: Options) -> Options:
        return self.inner.adjust_options(layer, options)

    def fixed_state(self, options: Options) -> dict[str, Tensor]:
        return self.inner.fixed_state(options)

    def with_fixed(self, options: Options, fixed: Mapping[str, Tensor]) -> Options:
        return self.inner.with_fixed(options, fixed)
