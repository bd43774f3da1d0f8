"""LoRA of several Linear layers with one input, computed together: query, key and value of an attention.

The n layers' `down` and `up` matrices lie at equal distances in the flat buffer, so that each kind is one (n, …) view
of it. The base layers keep a matrix product each, because their weights lie where the checkpoint put them; all other
products are batched. For each attention, a step launches 15 kernels instead of 26 if it is over itself, and 8 instead
of 12 for the keys and values of text.

N: rows (batch × tokens); i: in-features; o: out-features; r: rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.families.base import base_bias, base_weight
from lib_lora_train.adapters.families.lora import Lora
from lib_lora_train.models.fp8 import is_fp8
from lib_lora_train.models.lean_modules import AttentionProcessor


def join_projections(unet: nn.Module) -> list[Any]:
    """Compute the adapted projections of the UNet's attentions together where that is possible; these attentions."""
    joined: list[Any] = []
    for module in unet.modules():
        if isinstance(getattr(module, "processor", None), AttentionProcessor):
            query, key, value = (module.get_submodule(name) for name in ("to_q", "to_k", "to_v"))
            of_context = join_layers([key, value])
            if of_context is not None:
                module.set_processor(JointProjections(join_layers([query, key, value]), of_context))  # type: ignore[operator]
                joined.append(module)
    return joined


def separate_projections(attentions: Sequence[Any]) -> None:
    """Undo `join_projections`."""
    for attention in attentions:
        attention.set_processor(AttentionProcessor())


class JointProjections(AttentionProcessor):
    """Query, key and value together if they have one input, else key and value.

    Only with gradients: samples and measures call each layer, where hooks may record its output.
    """

    def __init__(self, of_one_input: JointLayers | None, of_context: JointLayers) -> None:
        self.of_one_input = of_one_input
        self.of_context = of_context

    def project(self, attn: Any, hidden_states: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (B, L, o) each."""
        is_one_input = context is hidden_states and self.of_one_input is not None
        joint = self.of_one_input if is_one_input else self.of_context
        if joint is None or not joint.is_usable:
            return super().project(attn, hidden_states, context)
        *query, key, value = joint(context)
        return query[0] if query else attn.to_q(hidden_states), key, value


def join_layers(layers: Sequence[nn.Module]) -> JointLayers | None:
    """The layers as one if they are adapted alike, else None.

    That is: plain LoRA of Linear layers without bias, with matrices of one shape, at equal distances in one buffer.
    """
    adapted = [layer for layer in layers if isinstance(layer, AdaptedLayer) and _is_plain(layer)]
    if len(adapted) < len(layers):
        return None
    joint = JointLayers(adapted)
    is_one_buffer = len({id(layer.slices.buffer) for layer in adapted}) == 1
    is_regular = joint.buffer.can_be_stacked(joint.downs) and joint.buffer.can_be_stacked(joint.ups)
    return joint if is_one_buffer and is_regular else None


def _is_plain(layer: AdaptedLayer) -> bool:
    """Whether the fused Function of LoRA serves the layer, and the base layer is a matrix alone."""
    base = layer.base_layer
    return (
        type(layer.family) is Lora
        and isinstance(base, nn.Linear)
        and base_bias(base) is None
        and tuple(layer.slices.positions) == ("down", "up")
    )


class JointLayers:
    """n adapted Linear layers with one input."""

    def __init__(self, layers: Sequence[AdaptedLayer]) -> None:
        self.layers = layers
        self.buffer = layers[0].slices.buffer
        self.switch = layers[0].switch
        self.downs = [layer.slices.positions["down"] for layer in layers]
        self.ups = [layer.slices.positions["up"] for layer in layers]

    @property
    def is_usable(self) -> bool:
        """Whether this is a pass with gradients, without dropout, with all layers on and of one scale."""
        if self.switch.dropout is not None or not torch.is_grad_enabled():
            return False
        return all(layer.is_on and layer.scale == self.layers[0].scale for layer in self.layers)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs (…, o) of the layers for one input (…, i)."""
        scale = self.layers[0].scale * self.switch.strength
        outputs: tuple[Tensor, ...] = _JointLora.apply(  # type: ignore[no-untyped-call]
            x, self.buffer.parameter, self, scale
        )
        return outputs

    @property
    def is_fp8(self) -> bool:
        """Whether a base layer's weight is cast on each use, so that saving it would waste memory."""
        return any(is_fp8(layer.base_layer) for layer in self.layers)

    def weights(self) -> list[Tensor]:
        """The frozen matrices (o, i)."""
        return [base_weight(layer.base_layer) for layer in self.layers]


class _JointLora(torch.autograd.Function):
    """y_j = x W_jᵀ + h_j up_jᵀ with h_j = scale · x down_jᵀ, (N, r), for j in 1 … n.

    With g_j, (N, o), the gradient of y_j, and that of x down_jᵀ, k_j = scale · g_j up_j:

        x: Σ_j g_j W_j + k_j down_j     down_j: k_jᵀ x     up_j: g_jᵀ h_j

    `_anchor` is the buffer's parameter, there for autograd alone: its gradient is added to the buffer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, _anchor: Tensor, joint: JointLayers, scale: float) -> tuple[Tensor, ...]:
        ctx.joint, ctx.scale = joint, scale
        weights = joint.weights()
        downs, ups = (joint.buffer.stack(positions, weights[0].dtype) for positions in (joint.downs, joint.ups))
        rows = x.reshape(-1, x.shape[-1])  # (N, i)
        output = rows.new_empty(len(weights), len(rows), ups.shape[1])
        parts = output.unbind()
        for part, weight in zip(parts, weights, strict=True):
            torch.mm(rows, weight.t(), out=part)
        hidden = torch.bmm(rows.expand(len(weights), -1, -1), downs.transpose(1, 2))  # (n, N, r)
        if scale != 1:
            hidden.mul_(scale)
        output.baddbmm_(hidden, ups.transpose(1, 2))
        ctx.trains = ctx.needs_input_grad[1]
        saved = weights if ctx.needs_input_grad[0] and not joint.is_fp8 else []
        ctx.save_for_backward(x if ctx.trains else None, hidden if ctx.trains else None, downs, ups, *saved)
        return tuple(part.view(*x.shape[:-1], -1) for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, downs, ups, *weights = ctx.saved_tensors
        stacked = torch.stack([grad.reshape(-1, grad.shape[-1]) for grad in grads])  # (n, N, o)
        grad_hidden = torch.bmm(stacked, ups)  # (n, N, r)
        if ctx.scale != 1:
            grad_hidden.mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            weights = weights or ctx.joint.weights()
            first, *others = stacked.unbind()
            grad_x = first @ weights[0]
            for part, weight in zip(others, weights[1:], strict=True):
                grad_x.addmm_(part, weight)
            for part, down in zip(grad_hidden.unbind(), downs.unbind(), strict=True):
                grad_x.addmm_(part, down)
            grad_x = grad_x.view(*grads[0].shape[:-1], -1)
        if ctx.trains:
            rows = x.reshape(-1, x.shape[-1]).expand(len(grads), -1, -1)  # (n, N, i)
            ctx.joint.buffer.add_products(ctx.joint.downs, grad_hidden.transpose(1, 2), rows)
            ctx.joint.buffer.add_products(ctx.joint.ups, stacked.transpose(1, 2), hidden)
        return grad_x, None, None, None
