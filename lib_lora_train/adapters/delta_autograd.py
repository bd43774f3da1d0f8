"""Layers whose ΔW is built in full, and how autograd reaches the weights in a `FlatBuffer`.

`leaf` returns one tensor as a differentiable value. `forward_with_delta` runs a layer with W + strength · ΔW and saves
only the input for the backward pass, where ΔW is built again: saved, all ΔW together would be as large as the model.

ΔW is never added to a half-precision W (at |ΔW| / |W| = 1e-3 three quarters of the update would be rounded away); the
update gets a separate product there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import grad as conv_grad

from lib_lora_train.adapters.flat_parameters import Slices

_conv: Any = conv_grad  # torch leaves these functions untyped
BuildDelta = Callable[[dict[str, Tensor], Tensor], "tuple[Tensor, Tensor | None]"]
"""(weights, W) → (ΔW, bias update), differentiable."""


def leaf(slices: Slices, name: str, dtype: torch.dtype) -> Tensor:
    """The tensor called `name` in `dtype`; its gradient is added to the flat gradient, in fp32."""
    value: Tensor = _Leaf.apply(slices.anchor, slices, name, dtype)  # type: ignore[no-untyped-call]
    return value


def forward_with_delta(
    layer: nn.Module, x: Tensor, slices: Slices, *, strength: float, build_delta: BuildDelta
) -> Tensor:
    """The output of a Linear or Conv2d with `strength` times the update that `build_delta` builds in fp32."""
    output: Tensor = _ForwardWithDelta.apply(  # type: ignore[no-untyped-call]
        x, slices.anchor, layer, slices, strength, build_delta
    )
    return output


class _Leaf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, slices: Slices, name: str, dtype: torch.dtype) -> Tensor:
        ctx.slices, ctx.name = slices, name
        value = slices.value(name, dtype)
        return value.view_as(value)  # autograd marks the returned tensor; the buffer's own view must stay unmarked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        ctx.slices.add_gradient(ctx.name, grad)
        return None, None, None, None


class _ForwardWithDelta(torch.autograd.Function):
    """y = op(x, W + strength · ΔW, b + strength · Δb)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        _anchor: Tensor,
        layer: nn.Module,
        slices: Slices,
        strength: float,
        build_delta: BuildDelta,
    ) -> Tensor:
        ctx.layer, ctx.slices, ctx.strength, ctx.build_delta = layer, slices, strength, build_delta
        weight = _weight(layer)
        diff, bias = build_delta(slices.fp32(), weight)
        ctx.trains = ctx.needs_input_grad[1]
        ctx.save_for_backward(x if ctx.trains else None, weight if ctx.needs_input_grad[0] else None)
        ctx.input_shape = x.shape
        if is_exact(weight):
            return _apply(layer, x, weight + diff * strength, _sum(layer.bias, bias, strength))
        bias_update = None if bias is None else (bias * strength).to(weight.dtype)
        update = (diff * strength).to(weight.dtype)
        return _apply(layer, x, weight, layer.bias) + _apply(layer, x, update, bias_update)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        base = _weight(ctx.layer)
        leaves = {name: value.detach().requires_grad_(ctx.trains) for name, value in ctx.slices.fp32().items()}
        with torch.enable_grad():
            diff, bias = ctx.build_delta(leaves, base)
        grad_x = None
        if weight is not None:
            update = diff.detach() * ctx.strength
            grad_x = _input_gradient(ctx.layer, ctx.input_shape, weight, update, grad)
        if ctx.trains:
            outputs = [diff] if bias is None else [diff, bias]
            grad_outputs = [_weight_gradient(ctx.layer, x, diff.shape, grad).to(diff.dtype) * ctx.strength]
            if bias is not None:
                grad_outputs.append(_bias_gradient(ctx.layer, grad).to(bias.dtype) * ctx.strength)
            gradients = torch.autograd.grad(outputs, list(leaves.values()), grad_outputs, allow_unused=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                if gradient is not None:
                    ctx.slices.add_gradient(name, gradient)
        return grad_x, None, None, None, None, None


def is_exact(weight: Tensor) -> bool:
    """Whether W + ΔW keeps ΔW's digits in W's dtype."""
    return weight.dtype in (torch.float32, torch.float64)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _sum(bias: Any, update: Tensor | None, strength: float) -> Tensor | None:
    if update is None or bias is None:
        return bias if update is None else update * strength
    return torch.add(bias, update, alpha=strength)


def _apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
    return F.linear(x, weight, bias)


def _input_gradient(layer: nn.Module, shape: torch.Size, weight: Tensor, update: Tensor, grad: Tensor) -> Tensor:
    if is_exact(weight):
        return _one_input_gradient(layer, shape, weight + update, grad)
    first = _one_input_gradient(layer, shape, weight, grad)
    return first + _one_input_gradient(layer, shape, update.to(weight.dtype), grad)


def _one_input_gradient(layer: nn.Module, shape: torch.Size, weight: Tensor, grad: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        found: Tensor = _conv.conv2d_input(shape, weight, grad, layer.stride, layer.padding, layer.dilation)
        return found
    return grad @ weight


def _weight_gradient(layer: nn.Module, x: Tensor, shape: torch.Size, grad: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        found: Tensor = _conv.conv2d_weight(x, shape, grad, layer.stride, layer.padding, layer.dilation)
        return found
    return grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])


def _bias_gradient(layer: nn.Module, grad: Tensor) -> Tensor:
    """Sum over all dimensions but the channels: the second of images, the last of rows."""
    return grad.sum((0, 2, 3)) if isinstance(layer, nn.Conv2d) else grad.reshape(-1, grad.shape[-1]).sum(0)
