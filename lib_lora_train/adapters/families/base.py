"""The interface that every adapter family implements, and what most of them share.

A family is mathematics only. Which layers are adapted, their names in files, where the weights are stored and how they
are switched on and off is the same for all: see `adapted_layer`, `flat_parameters`, `layer_names` and `inject`.

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

from lib_lora_train.adapters.delta_autograd import forward_with_delta
from lib_lora_train.adapters.dropout import LayerDropout
from lib_lora_train.adapters.families import layouts
from lib_lora_train.adapters.families.layouts import Layout
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices

Weights = Mapping[str, Tensor]


class Family(ABC):
    """One adapter family. `weights` maps the family's short names to tensors.

    Attributes:
        NAME: in settings
        STATE_KEYS: short name → the ending of its key in a file; a layer has some or all of them, in this order
        SCALE_EXPONENTS: short name → exponent e, such that multiplying each tensor by fᵉ multiplies ΔW by f; empty if
            that is impossible
        LAYOUTS: the shapes that the tensors of a layer may have together in a file, one entry per form; see `layouts`.
            A file is recognised by the tensors that all forms have
        DEPENDS_ON_MODEL: whether ΔW also depends on W
        IS_TRAINED_HERE: False for what is only read, from files of other programs
    """

    NAME: ClassVar[str]
    STATE_KEYS: ClassVar[Mapping[str, str]]
    SCALE_EXPONENTS: ClassVar[Mapping[str, float]] = {}
    LAYOUTS: ClassVar[tuple[Layout, ...]] = ()
    DEPENDS_ON_MODEL: ClassVar[bool] = False
    IS_TRAINED_HERE: ClassVar[bool] = True

    def fits(self, layer: nn.Module) -> bool:
        """Whether the family can adapt this layer; by default Linear and ungrouped, zero-padded 2-D convolution."""
        return is_linear(layer) or is_plain_conv(layer)

    def adjust_options(self, _layer: nn.Module, options: Options) -> Options:
        """The options for this layer, changed where the file format requires it."""
        return options

    @abstractmethod
    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial fp32 tensors on the CPU, whose ΔW is exactly zero."""

    @abstractmethod
    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW at strength 1 as a pure, differentiable function in the dtype of `weights`; `base` is W in any dtype."""

    def diff_bias(self, _weights: Weights) -> Tensor | None:
        """The update of the layer's bias at strength 1; None if there is none."""
        return None

    def diff_norm(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """‖ΔW‖ (Frobenius) as a 0-d tensor."""
        norm: Tensor = torch.linalg.vector_norm(self.diff_weight(weights, options, base))
        return norm

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
        """The layer's output with `strength` · ΔW; gradients go to the flat gradient of `slices`.

        By default ΔW is built in the forward pass and again in the backward pass, so that only the input is saved.
        """
        return forward_with_delta(
            layer,
            x,
            slices,
            strength=strength,
            build_delta=lambda w, base: self._build_update(w, options, base, dropout),
        )

    def _build_update(
        self, weights: Weights, options: Options, base: Tensor, dropout: LayerDropout | None
    ) -> tuple[Tensor, Tensor | None]:
        """ΔW and the bias update, with the same rows of both dropped."""
        bias = self.diff_bias(weights)
        diff = drop_rows(self.diff_weight(weights, options, base), dropout)
        return diff, None if bias is None else drop_rows(bias, dropout)

    def update_shape(self, weights: Weights) -> tuple[int, ...]:
        """The shape of ΔW as the tensors of a file show it, its kernel perhaps flat; () if they do not show it."""
        sizes = layouts.match_layout(weights, self.LAYOUTS)
        return layouts.update_shape(sizes or {})

    def file_weights(self, weights: Weights) -> Mapping[str, Tensor]:
        """The tensors that files hold: all of them, except in `WithScalar`; no other family overrides this."""
        return weights

    def fixed_state(self, options: Options) -> dict[str, Tensor]:
        """Key ending → constant saved beside the trained tensors, each 0-d."""
        return {"alpha": torch.tensor(options.alpha, dtype=torch.float32)}

    def with_fixed(self, options: Options, fixed: Mapping[str, Tensor]) -> Options:
        """The options with the constants of a file (`fixed_state`); without alpha, alpha = rank, as in all tools."""
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
    """A convolution larger than 1×1, to which kohya's conv_dim and Tucker's form apply."""
    return isinstance(layer, nn.Conv2d) and tuple(layer.kernel_size) != (1, 1)


def drop_rows(update: Tensor, dropout: LayerDropout | None, axis: int = 0) -> Tensor:
    """`update` with random output channels (along `axis`) set to 0 and the others scaled up by 1 / (1 − p).

    LyCORIS' rank dropout for families without a rank dimension. The mask is a function of the seed alone.
    """
    if dropout is None or not dropout.rank_dropout:
        return update
    generator = torch.Generator(update.device).manual_seed(dropout.seed)
    shape = [1] * update.dim()
    shape[axis] = update.shape[axis]
    kept = torch.rand(shape, generator=generator, device=update.device) >= dropout.rank_dropout
    return update * kept.to(update.dtype) / (1 - dropout.rank_dropout)


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """`x` convolved with `weight` with the layer's stride, padding and dilation, without bias."""
    return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)


def base_bias(layer: nn.Module) -> Tensor | None:
    """The frozen bias of a layer; None if it has none."""
    bias = layer.bias
    assert bias is None or isinstance(bias, Tensor)
    return bias


def base_weight(layer: nn.Module) -> Tensor:
    """The frozen weight of a layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def kaiming(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Kaiming-uniform with a = √5, as in kohya's scripts: the bound is 1 / √fan_in. fp32 on the CPU."""
    bound = torch.Size(shape[1:]).numel() ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """Normal with mean 0, fp32 on the CPU."""
    return torch.empty(shape).normal_(0.0, std, generator=generator)
