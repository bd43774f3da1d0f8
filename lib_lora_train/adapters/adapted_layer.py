"""The module that replaces a base layer while it is adapted."""

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
class AdapterSwitch:
    """State that all layers of an adapter share.

    `strength`: 0 for no effect, 1 as trained. `dropout`: of the current micro-batch; None outside training.
    """

    strength: float = 1.0
    dropout: DropoutState | None = None


class AdaptedLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A PEFT tuner layer around `base_layer` whose weights are slices of a `FlatBuffer`.

    It registers no parameters, so moving or casting the model cannot separate them from the buffer, and the base layer
    stays untouched.

    Args:
        base_layer: the module it replaces
        family: computes the update
        slices: this layer's weights
        options: rank, alpha and the family's other options
        switch: shared by the whole adapter
        key: the layer's name in the file
    """

    def __init__(
        self,
        base_layer: nn.Module,
        family: Family,
        slices: Slices,
        *,
        options: Options,
        switch: AdapterSwitch,
        key: str = "",
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
        """The update's factor at strength 1, alpha / rank, for families that have one."""
        return self.options.scale

    @property
    def is_on(self) -> bool:
        """Whether the update counts: by the adapter's switch, and by PEFT's for this layer."""
        return self.switch.strength != 0 and not self.disable_adapters

    def forward(self, x: Tensor) -> Tensor:
        """The base layer's output, plus the update unless it is switched off."""
        strength, dropout = self.switch.strength, self.switch.dropout
        if not self.is_on or (dropout is not None and dropout.skips_layer(self.key)):
            output: Tensor = self.base_layer(x)
            return output
        drop = None if dropout is None else dropout.for_layer(self.key)
        return self.family.forward(self.base_layer, x, self.slices, self.options, strength=strength, dropout=drop)

    def diff_weight(self) -> Tensor:
        """ΔW at strength 1, fp32, shaped like the base weight."""
        return self.family.diff_weight(self.slices.fp32(), self.options, base_weight(self.base_layer).detach())

    def diff_bias(self) -> Tensor | None:
        """The bias update at strength 1, fp32; None if the family has none."""
        return self.family.diff_bias(self.slices.fp32())

    def diff_norm(self) -> Tensor:
        """‖ΔW‖ at strength 1, 0-d."""
        return self.family.diff_norm(self.slices.fp32(), self.options, base_weight(self.base_layer).detach())

    def state(self) -> dict[str, Tensor]:
        """Key ending → fp32 copy on the CPU (booleans unchanged), including constants such as `alpha`."""
        views = self.state_views()
        return {
            ending: value.to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
            for ending, value in views.items()
        }

    def state_shapes(self) -> dict[str, torch.Size]:
        """Key ending → shape of each tensor of `state`."""
        return {ending: tensor.shape for ending, tensor in self.state_views().items()}

    def state_views(self) -> dict[str, Tensor]:
        """Like `state`, but views in the buffer's device and dtype if the file holds the weights unchanged."""
        endings = self.family.STATE_KEYS
        stored = self.family.file_weights(self.slices.tensors())
        views = {endings[name]: value for name, value in stored.items()}
        return {**views, **self.family.fixed_state(self.options)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load `state`, whose endings and shapes match `state_shapes`.

        A trained scalar, which files hold multiplied into the other weights, is set to 1.
        """
        endings = self.family.STATE_KEYS
        with torch.no_grad():
            for name, value in self.slices.tensors().items():
                value.copy_(state.get(endings[name], _ONE))
        fixed = {ending: state[ending] for ending in self.family.fixed_state(self.options) if ending in state}
        self.options = self.family.with_fixed(self.options, fixed)
