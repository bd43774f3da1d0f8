"""LoRA (Hu et al. 2021): ΔW = scale · up @ down, for Linear and Conv2d layers (LoCon's form for k×k kernels).

    down  (r, in)  or (r, in, k, k)     with the layer's stride, padding and dilation
    up    (out, r) or (out, r, 1, 1)
    scale = alpha / r

Notation: N rows (batch × tokens), i in-features, o out-features, r rank.

The forward pass is one autograd Function around base layer and LoRA together, in the base layer's own dtype. Against
the plain formula it saves the sum of two full-size outputs, full-size scaling, every per-call cast and the temporary
gradients of the matrices: 3 matrix products forward and 5 backward, nothing else at full size. It keeps only the input
and the rank-size product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import grad as conv_grad

from lib_lora_train.adapters.flat import Slices

_conv: Any = conv_grad  # torch leaves these functions untyped

NAME = "lora"
STATE_KEYS: Mapping[str, str] = {"down": "lora_down.weight", "up": "lora_up.weight"}


def fits(layer: nn.Module) -> bool:
    """Linear and ungrouped, zero-padded 2-D convolution."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def init_weights(layer: nn.Module, rank: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Fresh matrices as kohya draws them: down kaiming-uniform with a = √5, up zero. fp32 on the CPU.

    With that `a` the bound is 1 / √fan_in.
    """
    weight = base_weight(layer)
    out_features, in_shape = weight.shape[0], weight.shape[1:]
    bound = 1 / math.sqrt(in_shape.numel())
    down = torch.empty(rank, *in_shape).uniform_(-bound, bound, generator=generator)
    return {"down": down, "up": torch.zeros(out_features, rank, *(1,) * (weight.dim() - 2))}


def diff_weight(weights: Mapping[str, Tensor], scale: float) -> Tensor:
    """ΔW (out, in[, k, k]) in the dtype of `weights`."""
    down, up = weights["down"], weights["up"]
    product = up.flatten(1) @ down.flatten(1)
    return (product * scale).view(up.shape[0], *down.shape[1:])


def diff_norm(weights: Mapping[str, Tensor], scale: float) -> Tensor:
    """‖ΔW‖ (Frobenius), 0-d float64, from two rank × rank products: tr((upᵀ up)(down downᵀ))."""
    down, up = weights["down"].flatten(1).double(), weights["up"].flatten(1).double()
    square = ((up.t() @ up) * (down @ down.t())).sum()
    return abs(scale) * square.clamp_min(0).sqrt()


def forward_delta(layer: nn.Module, x: Tensor, weights: Mapping[str, Tensor], scale: float) -> Tensor:
    """What ΔW adds to the layer's output, by the plain formula and ordinary autograd."""
    down, up = weights["down"], weights["up"]
    if isinstance(layer, nn.Conv2d):
        hidden = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
        return F.conv2d(hidden * scale, up)
    return F.linear(F.linear(x, down) * scale, up)


def forward(layer: nn.Module, x: Tensor, slices: Slices, scale: float) -> Tensor:
    """The layer's output with ΔW. Gradients of the matrices go into the slices' flat gradient."""
    weight = base_weight(layer)
    down, up = slices.values(weight.dtype)
    if isinstance(layer, nn.Conv2d):
        return conv_lora(x, down, up, layer, scale=scale, slices=slices)
    return linear_lora(x, down, up, layer, scale=scale, slices=slices)


def linear_lora(
    x: Tensor, down: Tensor, up: Tensor, layer: nn.Module, *, scale: float, slices: Slices | None = None
) -> Tensor:
    """`forward` for Linear. Without `slices`, `down` and `up` are ordinary inputs that receive gradients."""
    anchor = slices.anchor if slices else None
    output: Tensor = _LinearLora.apply(x, down, up, anchor, layer, scale, slices)  # type: ignore[no-untyped-call]
    return output


def conv_lora(
    x: Tensor, down: Tensor, up: Tensor, layer: nn.Conv2d, *, scale: float, slices: Slices | None = None
) -> Tensor:
    """`forward` for Conv2d. Without `slices`, `down` and `up` are ordinary inputs that receive gradients."""
    anchor = slices.anchor if slices else None
    output: Tensor = _ConvLora.apply(x, down, up, anchor, layer, scale, slices)  # type: ignore[no-untyped-call]
    return output


def base_weight(layer: nn.Module) -> Tensor:
    """The frozen weight of a Linear or Conv2d."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _keep(ctx: Any, x: Tensor, hidden: Tensor, down: Tensor, up: Tensor) -> None:
    """Save for backward what the wanted gradients need, and no more.

    `needs_input_grad`: [x, down, up, anchor]. The anchor stands for down and up when they are slices.
    """
    ctx.trains = ctx.needs_input_grad[1] or ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
    weight = base_weight(ctx.layer) if ctx.needs_input_grad[0] else None
    ctx.save_for_backward(x if ctx.trains else None, hidden if ctx.trains else None, down, up, weight)


class _LinearLora(torch.autograd.Function):
    """y = x Wᵀ + b + (scale · x downᵀ) upᵀ."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor,
        up: Tensor,
        _anchor: Tensor | None,
        layer: nn.Linear,
        scale: float,
        slices: Slices | None,
    ) -> Tensor:
        ctx.layer, ctx.scale, ctx.slices = layer, scale, slices
        output = F.linear(x, layer.weight, layer.bias).contiguous()
        hidden = x.reshape(-1, x.shape[-1]) @ down.t()  # (N, r)
        if scale != 1:
            hidden.mul_(scale)
        output.view(-1, output.shape[-1]).addmm_(hidden, up.t())
        _keep(ctx, x, hidden, down, up)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up, weight = ctx.saved_tensors
        grad_rows = grad.reshape(-1, grad.shape[-1])  # (N, o)
        grad_hidden = grad_rows @ up  # (N, r)
        if ctx.scale != 1:
            grad_hidden.mul_(ctx.scale)
        grad_x = None
        if weight is not None:
            grad_x = (grad_rows @ weight).addmm_(grad_hidden, down).view(*grad.shape[:-1], -1)
        if not ctx.trains:
            return grad_x, *_NO_GRADIENTS
        rows = x.reshape(-1, x.shape[-1])  # (N, i)
        if ctx.slices is None:
            return grad_x, grad_hidden.t() @ rows, grad_rows.t() @ hidden, None, None, None, None
        ctx.slices.add_product("down", grad_hidden.t(), rows)
        ctx.slices.add_product("up", grad_rows.t(), hidden)
        return grad_x, *_NO_GRADIENTS


class _ConvLora(torch.autograd.Function):
    """y = conv(x, W) + b + conv1×1(scale · conv(x, down), up)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor,
        up: Tensor,
        _anchor: Tensor | None,
        layer: nn.Conv2d,
        scale: float,
        slices: Slices | None,
    ) -> Tensor:
        ctx.layer, ctx.scale, ctx.slices = layer, scale, slices
        output = F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)
        hidden = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)  # (B, r, h, w)
        if scale != 1:
            hidden.mul_(scale)
        output.add_(F.conv2d(hidden, up))
        ctx.input_shape = x.shape
        _keep(ctx, x, hidden, down, up)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up, weight = ctx.saved_tensors
        geometry = (ctx.layer.stride, ctx.layer.padding, ctx.layer.dilation)
        grad_hidden = F.conv2d(grad, up.transpose(0, 1))  # (B, r, h, w)
        if ctx.scale != 1:
            grad_hidden.mul_(ctx.scale)
        grad_x = None
        if weight is not None:
            grad_x = _conv.conv2d_input(ctx.input_shape, weight, grad, *geometry)
            grad_x.add_(_conv.conv2d_input(ctx.input_shape, down, grad_hidden, *geometry))
        if not ctx.trains:
            return grad_x, *_NO_GRADIENTS
        grad_down = _conv.conv2d_weight(x, down.shape, grad_hidden, *geometry)
        grad_up = _conv.conv2d_weight(hidden, up.shape, grad)
        if ctx.slices is None:
            return grad_x, grad_down, grad_up, None, None, None, None
        ctx.slices.add_gradient("down", grad_down)
        ctx.slices.add_gradient("up", grad_up)
        return grad_x, *_NO_GRADIENTS


_NO_GRADIENTS = (None,) * 6
