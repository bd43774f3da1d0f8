"""Layers whose ΔW is built as a whole, and how autograd reaches the numbers of a `FlatBuffer`.

`leaf` hands out one tensor as a differentiable value. `rebuilt` runs a layer with W + strength · ΔW and keeps only
the input for the backward pass, where ΔW is built again: kept, all ΔW together would be as large as the model.

A half-precision W is never rebuilt with ΔW inside (with |ΔW| / |W| = 1e-3 three quarters of the update would be
rounded away); the update gets a product of its own there.
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
Make = Callable[[dict[str, Tensor], Tensor], "tuple[Tensor, Tensor | None]"]
"""(weights, W) → (ΔW, what is added to the bias), differentiable."""


def leaf(slices: Slices, name: str, dtype: torch.dtype) -> Tensor:
    """The tensor called `name` in `dtype`; its gradient is added to the flat one, in fp32."""
    value: Tensor = _Leaf.apply(slices.anchor, slices, name, dtype)  # type: ignore[no-untyped-call]
    return value


def rebuilt(layer: nn.Module, x: Tensor, slices: Slices, *, strength: float, make: Make) -> Tensor:
    """The output of a Linear or Conv2d with `strength` times what `make` makes of the fp32 numbers."""
    output: Tensor = _Rebuilt.apply(x, slices.anchor, layer, slices, strength, make)  # type: ignore[no-untyped-call]
    return output


class _Leaf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, slices: Slices, name: str, dtype: torch.dtype) -> Tensor:
        ctx.slices, ctx.name = slices, name
        value = slices.value(name, dtype)
        return value.view_as(value)  # autograd marks what is returned, and the buffer's own view must stay unmarked

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        ctx.slices.add_gradient(ctx.name, grad)
        return None, None, None, None


class _Rebuilt(torch.autograd.Function):
    """y = op(x, W + strength · ΔW, b + strength · Δb)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, _anchor: Tensor, layer: nn.Module, slices: Slices, strength: float, make: Make
    ) -> Tensor:
        ctx.layer, ctx.slices, ctx.strength, ctx.make = layer, slices, strength, make
        weight = _weight(layer)
        diff, bias = make(slices.named(), weight)
        ctx.trains = ctx.needs_input_grad[1]
        ctx.save_for_backward(x if ctx.trains else None, weight if ctx.needs_input_grad[0] else None)
        ctx.input_shape = x.shape
        if is_exact(weight):
            return _apply(layer, x, weight + diff * strength, _sum(layer.bias, bias, strength))
        own = None if bias is None else (bias * strength).to(weight.dtype)
        return _apply(layer, x, weight, layer.bias) + _apply(layer, x, (diff * strength).to(weight.dtype), own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        base = _weight(ctx.layer)
        leaves = {name: value.detach().requires_grad_(ctx.trains) for name, value in ctx.slices.named().items()}
        with torch.enable_grad():
            diff, bias = ctx.make(leaves, base)
        grad_x = None
        if weight is not None:
            update = diff.detach() * ctx.strength
            grad_x = _input_gradient(ctx.layer, ctx.input_shape, weight, update, grad)
        if ctx.trains:
            made = [diff] if bias is None else [diff, bias]
            pulls = [_weight_gradient(ctx.layer, x, diff.shape, grad).to(diff.dtype) * ctx.strength]
            if bias is not None:
                pulls.append(_bias_gradient(ctx.layer, grad).to(bias.dtype) * ctx.strength)
            found = torch.autograd.grad(made, list(leaves.values()), pulls, allow_unused=True)
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None:
                    ctx.slices.add_gradient(name, gradient)
        return grad_x, None, None, None, None, None


def is_exact(weight: Tensor) -> bool:
    """Whether W + ΔW keeps ΔW's digits in W's number format."""
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
    """Sum over all but the channels: the second dimension of images, the last of rows."""
    return grad.sum((0, 2, 3)) if isinstance(layer, nn.Conv2d) else grad.reshape(-1, grad.shape[-1]).sum(0)
