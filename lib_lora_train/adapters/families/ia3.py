"""(IA)³ (Liu et al. 2022): each output (or input) of a layer is multiplied by 1 + w; ΔW = w ∘ W.

    weight  (out,) or, with `on_input`, (in,)

Less than a megabyte for SD1; needs about fifty times LoRA's learning rate. Linear layers only: A1111 misreads factors
of a convolution's outputs. LyCORIS has them, (1, n, 1, 1): `KernelIa3` is for its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_lora_train.adapters.delta_autograd import leaf
from lib_lora_train.adapters.dropout import LayerDropout
from lib_lora_train.adapters.families.base import Family, Weights, base_bias, base_weight, is_linear, is_plain_conv
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices


class Ia3(Family):
    """One trained factor per output or input."""

    NAME = "ia3"
    STATE_KEYS = {"weight": "weight"}
    SCALE_EXPONENTS = {"weight": 1.0}
    LAYOUTS = ({"weight": "n"}, {"weight": "1 n ~"}, {"weight": "n 1 ~"})
    DEPENDS_ON_MODEL = True

    def fits(self, layer: nn.Module) -> bool:
        """Linear layers."""
        return is_linear(layer)

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """Zeros: every factor is 1."""
        return {"weight": torch.zeros(base_weight(layer).shape[1 if options.on_input else 0])}

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW, (out, in)."""
        factors = weights["weight"].flatten()
        return base.to(factors.dtype) * (factors if options.on_input else factors[:, None])

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
        """The layer's output with ΔW; w scales only what is added, so that small factors keep their digits."""
        weight = base_weight(layer)
        factors = leaf(slices, "weight", weight.dtype) * strength
        output: Tensor = layer(x)
        if options.on_input:
            return output + F.linear(x * factors, weight)
        bias = base_bias(layer)
        return output + (output if bias is None else output - bias) * factors

    def fixed_state(self, options: Options) -> dict[str, Tensor]:
        """Which side is multiplied; no alpha, which would mislead."""
        return {"on_input": torch.tensor(options.on_input)}

    def with_fixed(self, options: Options, fixed: Mapping[str, Tensor]) -> Options:
        """The options with the file's side."""
        return replace(options, on_input=bool(fixed["on_input"])) if "on_input" in fixed else options


class KernelIa3(Ia3):
    """(IA)³ of a convolution, (1, n, 1, 1), as LyCORIS writes it; only for files of other trainers."""

    def fits(self, layer: nn.Module) -> bool:
        """Linear layers, which have the weights of a 1×1 convolution, and plain convolutions."""
        return is_linear(layer) or is_plain_conv(layer)

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW, shaped like `base`."""
        shape = [1] * base.dim()
        shape[1 if options.on_input else 0] = -1
        return base.to(weights["weight"].dtype) * weights["weight"].reshape(shape)

    forward = Family.forward
    """With ΔW: scaling the output would cost one more convolution for factors of inputs."""
