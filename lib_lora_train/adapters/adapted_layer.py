"""The module that stands in for a base layer while it is adapted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lib_lora_train.adapters.dropout import DropoutState
from lib_lora_train.adapters.families.base import Family, base_weight
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices

_ONE = torch.ones(1)


@dataclass
class Switch:
    """What all layers of one adapter share.

    `strength`: 0 without effect, 1 as trained. `chance`: what is random in a training step; None outside of one.
    """

    strength: float = 1.0
    chance: DropoutState | None = None


class AdaptedLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A PEFT tuner layer around `base_layer` whose numbers lie in a `FlatBuffer`.

    It registers no parameters of its own, so moving or casting the model cannot tear them out of the buffer, and the
    base layer stays the untouched original.

    Args:
        base_layer: the module whose place this one takes
        family: the mathematics
        slices: where this layer's numbers lie
        options: rank, alpha and what else the family reads
        switch: shared by the whole adapter
        key: the layer's name in the file
    """

    def __init__(
        self, base_layer: nn.Module, family: Family, slices: Slices, *, options: Options, switch: Switch, key: str = ""
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.family = family
        self.slices = slices
        self.options = options
        self.switch = switch
        self.key = key

    @property
    def scale(self) -> float:
        """Factor of the update at strength 1, where the family has one."""
        return self.options.scale

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output with, unless switched off, the update."""
        strength, chance = self.switch.strength, self.switch.chance
        if strength == 0 or self.disable_adapters or (chance is not None and chance.skips(self.key)):
            output: Tensor = self.base_layer(x)
            return output
        draw = None if chance is None else chance.draw(self.key)
        return self.family.forward(self.base_layer, x, self.slices, self.options, strength=strength, draw=draw)

    def diff_weight(self) -> Tensor:
        """ΔW at strength 1, fp32, shaped like the base weight."""
        return self.family.diff_weight(self.slices.named(), self.options, base_weight(self.base_layer).detach())

    def diff_bias(self) -> Tensor | None:
        """What is added to the bias at strength 1, fp32."""
        return self.family.diff_bias(self.slices.named())

    def diff_norm(self) -> Tensor:
        """‖ΔW‖ at strength 1, 0-d."""
        return self.family.diff_norm(self.slices.named(), self.options, base_weight(self.base_layer).detach())

    def state(self) -> dict[str, Tensor]:
        """Key ending → fp32 copy on the CPU (switches as they are), with what the file says beside them (`alpha` …)."""
        views = self.state_views()
        return {
            ending: value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
            for ending, value in views.items()
        }

    def state_shapes(self) -> dict[str, torch.Size]:
        """Key ending → shape, for what `state` returns."""
        return {ending: tensor.shape for ending, tensor in self.state_views().items()}

    def state_views(self) -> dict[str, Tensor]:
        """As `state`, without copying what files hold as it is, on its device and in its number format."""
        endings = self.family.STATE_KEYS
        stored = self.family.file_weights(self.slices.stored())
        views = {endings[name]: value for name, value in stored.items()}
        return {**views, **self.family.fixed_state(self.options)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the numbers of `state`, whose endings and shapes are those of `state_shapes`.

        A trained factor, which is multiplied into the other numbers there, is 1 again.
        """
        endings = self.family.STATE_KEYS
        with torch.no_grad():
            for name, value in self.slices.stored().items():
                value.copy_(state.get(endings[name], _ONE))
        fixed = {ending: state[ending] for ending in self.family.fixed_state(self.options) if ending in state}
        self.options = self.family.with_fixed(self.options, fixed)
