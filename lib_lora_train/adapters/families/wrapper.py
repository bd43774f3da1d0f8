"""A family around another one: everything as the inner family has it, but for what a subclass says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Family
from lib_lora_train.adapters.families.options import Options


@dataclass(frozen=True)
class Wrapped(Family):
    """`inner`, with something done to its weights or to ΔW."""

    inner: Family

    @property
    def NAME(self) -> str:  # type: ignore[override]
        """The inner family's: settings switch the wrapping on beside it."""
        return self.inner.NAME

    def fits(self, layer: nn.Module) -> bool:
        """Whatever the inner family can adapt."""
        return self.inner.fits(layer)

    def settled(self, layer: nn.Module, options: Options) -> Options:
        """As the inner family."""
        return self.inner.settled(layer, options)

    def fixed_state(self, options: Options) -> dict[str, Tensor]:
        """As the inner family."""
        return self.inner.fixed_state(options)

    def with_fixed(self, options: Options, fixed: Mapping[str, Tensor]) -> Options:
        """As the inner family."""
        return self.inner.with_fixed(options, fixed)
