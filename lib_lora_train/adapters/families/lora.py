"""LoRA (Hu et al. 2021): ΔW = scale · up @ down, for Linear and Conv2d layers (LoCon's form for k×k kernels).

    down  (r, in)  or (r, in, k, k)     with the layer's stride, padding and dilation
    up    (out, r) or (out, r, 1, 1)
    scale = alpha / r

Tucker's form splits a k×k kernel in three (Kim et al. 2016): down (r, in, 1, 1), mid (r, r, k, k), up (out, r, 1, 1).

Notation: N rows (batch × tokens), i in-features, o out-features, r rank.

The forward pass is one autograd Function for base layer and LoRA together, in the base layer's dtype. Compared with the
plain formula it avoids the sum of two full-size outputs, full-size scaling, a cast per call and the temporary gradients
of the matrices: 3 matrix products forward and 5 backward, nothing else at full size. It saves only the input and the
rank-size product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import grad as conv_grad

from lib_lora_train.adapters.delta_autograd import leaf
from lib_lora_train.adapters.dropout import LayerDropout
from lib_lora_train.adapters.families.base import Family, Weights, base_weight, convolve, is_wide_conv, kaiming
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices
from lib_lora_train.models.fp8 import is_fp8

_conv: Any = conv_grad  # torch leaves these functions untyped


class Lora(Family):
    """LoRA, and LoCon if the targets include convolutions."""

    NAME = "lora"
    STATE_KEYS = {"down": "lora_down.weight", "mid": "lora_mid.weight", "up": "lora_up.weight"}
    SCALE_EXPONENTS = {"down": 0.5, "up": 0.5}
    LAYOUTS = ({"down": "r i *k", "up": "o r ~"}, {"down": "r i ~", "mid": "r r *k", "up": "o r ~"})

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """As in kohya's scripts: down (and mid) kaiming-uniform, up zero. fp32 on the CPU."""
        weight, rank = base_weight(layer), options.rank
        up = torch.zeros(weight.shape[0], rank, *(1,) * (weight.dim() - 2))
        if options.use_tucker and is_wide_conv(layer):
            down = kaiming((rank, weight.shape[1], 1, 1), generator)
            return {"down": down, "mid": kaiming((rank, rank, *weight.shape[2:]), generator), "up": up}
        return {"down": kaiming((rank, *weight.shape[1:]), generator), "up": up}

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW (out, in[, k, k]) in the dtype of `weights`."""
        down, up = weights["down"], weights["up"]
        if "mid" in weights:
            kernel = torch.einsum("orhw,ri->oihw", weights["mid"], down.flatten(1))  # (r, in, k, k)
            return torch.einsum("or,rihw->oihw", up.flatten(1), kernel) * options.scale
        product = up.flatten(1) @ down.flatten(1)
        return (product * options.scale).view(base.shape)

    def diff_norm(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """‖ΔW‖ (Frobenius), 0-d float64, from two rank × rank products: tr((upᵀ up)(down downᵀ))."""
        if "mid" in weights:
            return super().diff_norm(weights, options, base)
        down, up = weights["down"].flatten(1).double(), weights["up"].flatten(1).double()
        square = ((up.t() @ up) * (down @ down.t())).sum()
        return abs(options.scale) * square.clamp_min(0).sqrt()

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
        """The layer's output with ΔW; by the fused Function unless there is dropout or `mid` between down and up."""
        scale = options.scale * strength
        if "mid" in slices.positions or (dropout is not None and dropout.is_active):
            output: Tensor = layer(x)
            return output + self._stepwise(layer, x, slices, scale, dropout)
        down, up = slices.values(base_weight(layer).dtype)
        if isinstance(layer, nn.Conv2d):
            compute = pointwise_lora if is_pointwise(layer) else conv_lora
            return compute(x, down, up, layer, scale=scale, slices=slices)
        return linear_lora(x, down, up, layer, scale=scale, slices=slices)

    def _stepwise(
        self, layer: nn.Module, x: Tensor, slices: Slices, scale: float, dropout: LayerDropout | None
    ) -> Tensor:
        """What ΔW adds to the output, with dropout of the rank-size activations."""
        dtype = base_weight(layer).dtype
        tensors = {name: leaf(slices, name, dtype) for name in slices.positions}
        return delta(layer, x, tensors, scale, dropout)


def delta(layer: nn.Module, x: Tensor, tensors: Weights, scale: float, dropout: LayerDropout | None = None) -> Tensor:
    """`scale` · up(mid(down(x))) by ordinary autograd."""
    down, up = tensors["down"], tensors["up"]
    if not isinstance(layer, nn.Conv2d):
        return F.linear(drop_activations(F.linear(x, down), dropout, -1) * scale, up)
    hidden = convolve(layer, F.conv2d(x, down), tensors["mid"]) if "mid" in tensors else convolve(layer, x, down)
    return F.conv2d(drop_activations(hidden, dropout, 1) * scale, up)


def drop_activations(hidden: Tensor, dropout: LayerDropout | None, rank_axis: int) -> Tensor:
    """Rank-size activations (B, …) with random elements and whole ranks (per sample) set to 0, the rest scaled up.

    As in kohya's scripts; the mask is a function of the seed alone, so a recomputed pass gets the same one.
    """
    if dropout is None or not dropout.is_active:
        return hidden
    generator = torch.Generator(hidden.device).manual_seed(dropout.seed)
    if dropout.neuron_dropout:
        kept = torch.rand(hidden.shape, generator=generator, device=hidden.device) >= dropout.neuron_dropout
        hidden = hidden * kept.to(hidden.dtype) / (1 - dropout.neuron_dropout)
    if dropout.rank_dropout:
        shape = [1] * hidden.dim()
        shape[0], shape[rank_axis] = hidden.shape[0], hidden.shape[rank_axis]
        kept = torch.rand(shape, generator=generator, device=hidden.device) >= dropout.rank_dropout
        hidden = hidden * kept.to(hidden.dtype) / (1 - dropout.rank_dropout)
    return hidden


def linear_lora(
    x: Tensor, down: Tensor, up: Tensor, layer: nn.Module, *, scale: float, slices: Slices | None = None
) -> Tensor:
    """`forward` for Linear. Without `slices`, `down` and `up` are ordinary inputs that receive gradients."""
    return _fused(_LinearLora, x, down, up, layer, scale, slices)


def conv_lora(
    x: Tensor, down: Tensor, up: Tensor, layer: nn.Conv2d, *, scale: float, slices: Slices | None = None
) -> Tensor:
    """`forward` for Conv2d. Without `slices`, `down` and `up` are ordinary inputs that receive gradients."""
    return _fused(_ConvLora, x, down, up, layer, scale, slices)


def pointwise_lora(
    x: Tensor, down: Tensor, up: Tensor, layer: nn.Conv2d, *, scale: float, slices: Slices | None = None
) -> Tensor:
    """`conv_lora` for a layer that `is_pointwise`, by matrix products, which are faster than convolutions."""
    return _fused(_PointwiseLora, x, down, up, layer, scale, slices)


def _fused(
    function: Any, x: Tensor, down: Tensor, up: Tensor, layer: nn.Module, scale: float, slices: Slices | None
) -> Tensor:
    """The output of one of the Functions below; gradients go to `slices`, if given, by way of its anchor."""
    anchor = slices.anchor if slices else None
    output: Tensor = function.apply(x, down, up, anchor, layer, scale, slices)
    return output


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether each output pixel depends on one input pixel, at the same place."""
    return tuple(layer.kernel_size) == (1, 1) and tuple(layer.stride) == (1, 1) and set(layer.padding) == {0}


def _save_for_backward(ctx: Any, x: Tensor, hidden: Tensor, down: Tensor, up: Tensor) -> None:
    """Save only what the required gradients need.

    `needs_input_grad`: [x, down, up, anchor]. If down and up are slices, the anchor requires the gradient.
    """
    ctx.trains = ctx.needs_input_grad[1] or ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
    saves_weight = ctx.needs_input_grad[0] and not is_fp8(ctx.layer)
    weight = base_weight(ctx.layer) if saves_weight else None
    ctx.save_for_backward(x if ctx.trains else None, hidden if ctx.trains else None, down, up, weight)


def _load_saved(ctx: Any) -> tuple[Any, ...]:
    """What `_save_for_backward` saved; the weight of an fp8 layer is cast again."""
    *saved, weight = ctx.saved_tensors
    if weight is None and ctx.needs_input_grad[0]:
        weight = base_weight(ctx.layer)
    return *saved, weight


class _LinearLora(torch.autograd.Function):
    """y = x Wᵀ + b + h upᵀ with h = scale · x downᵀ, (N, r).

    With g, (N, o), the gradient of y, and g_h = scale · g up that of x downᵀ:

        x: g W + g_h down     down: g_hᵀ x     up: gᵀ h
    """

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
        _save_for_backward(ctx, x, hidden, down, up)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up, weight = _load_saved(ctx)
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
    """y = conv(x, W) + b + conv1×1(h, up) with h = scale · conv(x, down), (B, r, h, w).

    The gradients are those of `_LinearLora`, with convolutions in place of the products.
    """

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
        _save_for_backward(ctx, x, hidden, down, up)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up, weight = _load_saved(ctx)
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


class _PointwiseLora(torch.autograd.Function):
    """y = conv1×1(x, W) + b + up h with h = scale · down x, (B, r, P), and x as (B, i, P) of P pixels.

    The gradients are those of `_LinearLora`, with pixels as columns, and those of down and up summed over the images.
    """

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
        output = F.conv2d(x, layer.weight, layer.bias).contiguous()
        hidden = torch.bmm(_for_each(down, len(x)), x.flatten(2))  # (B, r, P)
        if scale != 1:
            hidden.mul_(scale)
        output.flatten(2).baddbmm_(_for_each(up, len(x)), hidden)
        _save_for_backward(ctx, x, hidden, down, up)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, down, up, weight = _load_saved(ctx)
        count, pixels = len(grad), grad.flatten(2)  # (B, o, P)
        grad_hidden = torch.bmm(_for_each(up, count).transpose(1, 2), pixels)  # (B, r, P)
        if ctx.scale != 1:
            grad_hidden.mul_(ctx.scale)
        grad_x = None
        if weight is not None:
            shape = (*grad.shape[:1], weight.shape[1], *grad.shape[2:])
            grad_x = _conv.conv2d_input(shape, weight, grad).contiguous()
            grad_x.flatten(2).baddbmm_(_for_each(down, count).transpose(1, 2), grad_hidden)
        if not ctx.trains:
            return grad_x, *_NO_GRADIENTS
        pairs = {"down": (grad_hidden, x.flatten(2)), "up": (pixels, hidden)}
        if ctx.slices is None:
            grad_down, grad_up = (torch.bmm(left, right.transpose(1, 2)).sum(0) for left, right in pairs.values())
            return grad_x, grad_down.view(down.shape), grad_up.view(up.shape), None, None, None, None
        for name, (left, right) in pairs.items():
            if count == 1:
                ctx.slices.add_product(name, left[0], right[0].t())
            else:
                ctx.slices.add_gradient(name, torch.bmm(left, right.transpose(1, 2)).sum(0))
        return grad_x, *_NO_GRADIENTS


def _for_each(matrix: Tensor, count: int) -> Tensor:
    """(a, b, 1, 1) → (count, a, b): the same matrix for each image."""
    return matrix.flatten(1).expand(count, -1, -1)


_NO_GRADIENTS = (None,) * 6
