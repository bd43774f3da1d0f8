"""What an adapter family is: the few names that every family file offers, and what most of them share.

A family is mathematics only. Which layers, what they are called in the file, where the numbers lie, on and off is
the same for all and stands in `layers`, `flat`, `names` and `inject`.

Notation: W the frozen base weight, (out, in) or (out, in, k, k); ΔW the update, of the same shape; s = alpha / rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_lora_train.adapters.delta_autograd import rebuilt
from lib_lora_train.adapters.dropout import Draw
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices

Weights = Mapping[str, Tensor]


class Family(ABC):
    """One adapter family. `weights` maps the family's own short names to tensors.

    NAME: how settings call it
    STATE_KEYS: short name → the ending of its key in a file; a layer has some or all of them, in this order
    SHRINK: short name → exponent e: multiplying each tensor by fᵉ multiplies ΔW by f; empty if that is impossible
    """

    NAME: ClassVar[str]
    STATE_KEYS: ClassVar[Mapping[str, str]]
    SHRINK: ClassVar[Mapping[str, float]] = {}

    def fits(self, layer: nn.Module) -> bool:
        """Whether the family can adapt this layer: Linear and ungrouped, zero-padded 2-D convolution."""
        return is_linear(layer) or is_plain_conv(layer)

    def settled(self, _layer: nn.Module, options: Options) -> Options:
        """The options as they hold on this layer, where the file format leaves no choice."""
        return options

    @abstractmethod
    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh fp32 tensors on the CPU whose ΔW is exactly zero."""

    @abstractmethod
    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW at strength 1 as a pure, differentiable function in the dtype of `weights`; `base` is W in any dtype."""

    def diff_bias(self, _weights: Weights) -> Tensor | None:
        """What is added to the layer's bias at strength 1."""
        return None

    def diff_norm(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """‖ΔW‖ (Frobenius) as a 0-d tensor."""
        norm: Tensor = torch.linalg.vector_norm(self.diff_weight(weights, options, base))
        return norm

    def forward(
        self, layer: nn.Module, x: Tensor, slices: Slices, options: Options, *, strength: float, draw: Draw | None
    ) -> Tensor:
        """The layer's output with `strength` · ΔW; gradients go into the flat gradient of `slices`.

        Here ΔW is built anew in each pass, forward and backward, so that only the input is kept in between.
        """
        return rebuilt(
            layer,
            x,
            slices,
            strength=strength,
            make=lambda w, base: self._made(w, options, base, draw),
        )

    def _made(
        self, weights: Weights, options: Options, base: Tensor, draw: Draw | None
    ) -> tuple[Tensor, Tensor | None]:
        """ΔW and what is added to the bias, with the same rows of both dropped."""
        bias = self.diff_bias(weights)
        diff = kept_rows(self.diff_weight(weights, options, base), draw)
        return diff, None if bias is None else kept_rows(bias, draw)

    def file_weights(self, weights: Weights) -> Mapping[str, Tensor]:
        """The numbers as files hold them: all of them, but for `Scaled`."""
        return weights

    def fixed_state(self, options: Options) -> dict[str, Tensor]:
        """Key ending → what the file says beside the trained tensors, all 0-d."""
        return {"alpha": torch.tensor(options.alpha, dtype=torch.float32)}

    def with_fixed(self, options: Options, fixed: Mapping[str, Tensor]) -> Options:
        """The options as a file's `fixed_state` says; a missing alpha means alpha = rank, as everywhere."""
        return replace(options, alpha=float(fixed["alpha"]) if "alpha" in fixed else float(options.rank))


def is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear)


def is_plain_conv(layer: nn.Module) -> bool:
    """Ungrouped, zero-padded 2-D convolution with numeric padding."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def is_wide_conv(layer: nn.Module) -> bool:
    """A convolution that sees more than one position: kohya's conv rank and Tucker's form are for these."""
    return isinstance(layer, nn.Conv2d) and tuple(layer.kernel_size) != (1, 1)


def kept_rows(update: Tensor, draw: Draw | None, axis: int = 0) -> Tensor:
    """`update` with whole output channels, which lie along `axis`, set to 0 and the others made larger.

    LyCORIS' rank dropout of families that have no rank in between. The mask is a function of the draw's seed alone.
    """
    if draw is None or not draw.rank_dropout:
        return update
    generator = torch.Generator(update.device).manual_seed(draw.seed)
    shape = [1] * update.dim()
    shape[axis] = update.shape[axis]
    kept = torch.rand(shape, generator=generator, device=update.device) >= draw.rank_dropout
    return update * kept.to(update.dtype) / (1 - draw.rank_dropout)


def convolved(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """`x` convolved with `weight` in the layer's geometry, without bias."""
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)


def base_bias(layer: nn.Module) -> Tensor | None:
    """The frozen bias of a layer, None where it has none."""
    bias = layer.bias
    assert bias is None or isinstance(bias, Tensor)
    return bias


def base_weight(layer: nn.Module) -> Tensor:
    """The frozen weight of a layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def kaiming(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Kaiming-uniform with a = √5, as kohya draws it: the bound is 1 / √fan_in. fp32 on the CPU."""
    bound = torch.Size(shape[1:]).numel() ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Normal numbers of mean 0, fp32 on the CPU."""
    return torch.empty(shape).normal_(0.0, std, generator=generator)
