"""Attention and GEGLU of a diffusers UNet with fewer kernels, and the same numbers.

Batches of one are bound by the launches of kernels rather than by arithmetic. What diffusers' modules compute in vain
for Stable Diffusion is left out: attention outputs divided by one, and joining the two halves of GEGLU's gradient.

N: rows (batch × tokens); B: batch; L: tokens; h: heads; d: width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def use_lean_modules(unet: Any) -> None:
    """Replace, in place, what can be replaced; names and shapes of the parameters stay the same."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.attention_processor import Attention

    for name, module in list(unet.named_modules()):
        if isinstance(module, Attention) and _is_plain(module):
            module.set_processor(AttentionProcessor())
        elif type(module) is GEGLU:
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, Geglu(module.proj))


def _is_plain(attn: Any) -> bool:
    """Whether there is nothing but projections and attention: no norm, no residual connection, no scaling."""
    norms = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k")
    return (
        all(getattr(attn, name, None) is None for name in norms)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
    )


class AttentionProcessor:
    """Attention of (B, L, h·d) over itself or over `encoder_hidden_states`, without a mask.

    `project` may be replaced by a way to compute the three projections together.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The attention's output projection, shaped like `hidden_states`."""
        assert attention_mask is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (_split_heads(part, attn.heads) for part in self.project(attn, hidden_states, context))
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, h, L, d)
        output: Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
        return output

    def project(self, attn: Any, hidden_states: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, (B, L, h·d) each."""
        return attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)


def _split_heads(part: Tensor, heads: int) -> Tensor:
    """(B, L, h·d) → (B, h, L, d)."""
    return part.view(*part.shape[:2], heads, -1).transpose(1, 2)


class Geglu(nn.Module):
    """x ↦ u · gelu(g) with (u, g) = proj(x) (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(…, i) → (…, o), where `proj` has 2·o outputs."""
        output: Tensor = _Gate.apply(self.proj(hidden_states))  # type: ignore[no-untyped-call]
        return output


class _Gate(torch.autograd.Function):
    """(u, g) ↦ u · gelu(g). Both halves of the gradient are written where they belong instead of being joined."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:
        value, gate = projected.chunk(2, dim=-1)
        activation = F.gelu(gate)
        ctx.save_for_backward(projected, activation)
        return value * activation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        projected, activation = ctx.saved_tensors
        value, gate = projected.chunk(2, dim=-1)
        result = torch.empty_like(projected)
        for_value, for_gate = result.chunk(2, dim=-1)
        torch.mul(grad, activation, out=for_value)
        torch.ops.aten.gelu_backward.grad_input(grad * value, gate, grad_input=for_gate)
        return result
