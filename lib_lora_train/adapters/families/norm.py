"""Group and layer norms, trained alongside any family: the updates of their weight and bias.

    w_norm, b_norm  (channels,)

Webuis require both, and read them together with any family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from lib_lora_train.adapters.delta_autograd import is_exact, leaf
from lib_lora_train.adapters.dropout import LayerDropout
from lib_lora_train.adapters.families.base import Weights, base_weight
from lib_lora_train.adapters.families.full import Full
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices


class Norm(Full):
    """Updates of norm layers."""

    NAME = "norm"
    STATE_KEYS = {"diff": "w_norm", "bias": "b_norm"}
    LAYOUTS: ClassVar[tuple[Mapping[str, str], ...]] = ({"diff": "c", "bias": "c"},)

    def fits(self, layer: nn.Module) -> bool:
        """Group and layer norm with weight and bias."""
        return isinstance(layer, (nn.GroupNorm, nn.LayerNorm)) and layer.weight is not None and layer.bias is not None

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """The update of the weight, (channels,)."""
        return weights["diff"]

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
        """The norm's output; in half precision the update is applied to the output, to keep its digits."""
        weight, bias = base_weight(layer), layer.bias
        assert isinstance(bias, Tensor)
        diff = leaf(slices, "diff", weight.dtype) * strength
        diff_b = leaf(slices, "bias", weight.dtype) * strength
        if is_exact(weight):
            return _normalised(layer, x, weight + diff, bias + diff_b)
        output: Tensor = layer(x)
        return output + _normalised(layer, x, diff, diff_b)


def _normalised(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    assert isinstance(layer, nn.LayerNorm)
    return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
