"""The module that stands in for a base layer while it is adapted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lib_lora_train.adapters.flat import Slices
from lib_lora_train.adapters.registry import Family


@dataclass
class Switch:
    """The strength that all layers of one adapter share: 0 without effect, 1 as trained."""

    strength: float = 1.0


class AdaptedLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A PEFT tuner layer around `base_layer` whose numbers lie in a `FlatBuffer`.

    It registers no parameters of its own, so moving or casting the model cannot tear them out of the buffer, and the
    base layer stays the untouched original.

    Args:
        base_layer: the module whose place this one takes
        family: the mathematics
        slices: where this layer's numbers lie
        alpha: strength numerator; the scale is alpha / rank
        rank: rank of the update
        switch: shared by the whole adapter
    """

    def __init__(
        self, base_layer: nn.Module, family: Family, slices: Slices, *, alpha: float, rank: int, switch: Switch
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.family = family
        self.slices = slices
        self.alpha = alpha
        self.rank = rank
        self.switch = switch

    @property
    def scale(self) -> float:
        """Factor of the update at strength 1."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output plus, unless switched off, the update's."""
        strength = self.switch.strength
        if strength == 0 or self.disable_adapters:
            output: Tensor = self.base_layer(x)
            return output
        return self.family.forward(self.base_layer, x, self.slices, self.scale * strength)

    def diff_weight(self) -> Tensor:
        """ΔW at strength 1, fp32, shaped like the base weight."""
        return self.family.diff_weight(self.slices.named(), self.scale)

    def diff_norm(self) -> Tensor:
        """‖ΔW‖ at strength 1, 0-d."""
        return self.family.diff_norm(self.slices.named(), self.scale)

    def state(self) -> dict[str, Tensor]:
        """Key ending → fp32 copy on the CPU, `alpha` among them."""
        named = self.slices.named()
        state = {ending: named[name].to("cpu", copy=True) for name, ending in self.family.STATE_KEYS.items()}
        return {**state, "alpha": torch.tensor(self.alpha, dtype=torch.float32)}

    def state_shapes(self) -> dict[str, torch.Size]:
        """Key ending → shape, for what `state` returns."""
        named = self.slices.named()
        shapes = {ending: named[name].shape for name, ending in self.family.STATE_KEYS.items()}
        return {**shapes, "alpha": torch.Size()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the numbers of `state`, whose endings and shapes are those of `state_shapes`."""
        named = self.slices.named()
        with torch.no_grad():
            for name, ending in self.family.STATE_KEYS.items():
                named[name].copy_(state[ending])
        self.alpha = float(state["alpha"]) if "alpha" in state else float(self.rank)
