"""LoKr (Yeh et al. 2024, LyCORIS): ΔW = s · w1 ⊗ w2, a Kronecker product of a small and a big matrix.

The sizes are factorised, out = o1 · o2 and in = i1 · i2; w1 is (o1, i1), w2 is (o2, i2[, k, k]). A matrix is itself low
rank (w_a @ w_b) where that is smaller: w2 if r < max(o2, i2) / 2, w1 if `decompose_both` and r < max(o1, i1) / 2.
With Tucker's form a k×k w2 is t2 (r, r, k, k) with w2_a (r, o2) and w2_b (r, i2).

If both are full matrices there is no rank, and every webui ignores alpha: s = 1.

Notation: x (…, i1 · i2) is viewed as (…, i1, i2). (w1 ⊗ w2) x applies w1 to the first and w2 to the second axis, which
costs a fraction of the base layer's own product; ΔW is never built in training.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib_lora_train.adapters.delta_autograd import leaf
from lib_lora_train.adapters.dropout import LayerDropout
from lib_lora_train.adapters.families.base import Family, Weights, base_weight, convolve, drop_rows, kaiming
from lib_lora_train.adapters.families.factorization import lokr_shapes
from lib_lora_train.adapters.families.loha import tucker
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices


class Lokr(Family):
    """Kronecker product."""

    NAME = "lokr"
    STATE_KEYS = {
        "w1": "lokr_w1",
        "w1_a": "lokr_w1_a",
        "w1_b": "lokr_w1_b",
        "w2": "lokr_w2",
        "w2_a": "lokr_w2_a",
        "w2_b": "lokr_w2_b",
        "t2": "lokr_t2",
    }
    SCALE_EXPONENTS = {"w1": 0.5, "w1_a": 0.25, "w1_b": 0.25, "w2": 0.5, "w2_a": 0.25, "w2_b": 0.25}
    LAYOUTS = tuple(
        {**small, **big}
        for small in ({"w1": "a b"}, {"w1_a": "a p", "w1_b": "p b"})
        for big in (
            {"w2": "c d *k"},
            {"w2_a": "c q", "w2_b": "q n"},
            {"w2_a": "q c", "w2_b": "q d", "t2": "q q *k"},
        )
    )

    def adjust_options(self, layer: nn.Module, options: Options) -> Options:
        """alpha = rank if both are full matrices."""
        shapes = lokr_shapes(base_weight(layer).shape, options)
        return replace(options, alpha=float(options.rank)) if {"w1", "w2"} <= shapes.keys() else options

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """Kaiming-uniform, except for the last factor of w2, which is zero."""
        shapes = lokr_shapes(base_weight(layer).shape, options)
        zero = "w2" if "w2" in shapes else "w2_b"
        return {
            name: torch.zeros(shape) if name == zero else kaiming(shape, generator) for name, shape in shapes.items()
        }

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW, (out, in[, k, k])."""
        small, big = small_matrix(weights), big_matrix(weights)
        scale = scale_of(weights, options)
        if big.dim() == 4:
            return torch.kron(small[:, :, None, None], big.contiguous()).reshape(base.shape) * scale
        return torch.kron(small, big).reshape(base.shape) * scale

    def diff_norm(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """‖w1 ⊗ w2‖ = ‖w1‖ · ‖w2‖."""
        norms = [torch.linalg.vector_norm(matrix(weights)) for matrix in (small_matrix, big_matrix)]
        product: Tensor = norms[0] * norms[1]
        return product * abs(scale_of(weights, options))

    def update_shape(self, weights: Weights) -> tuple[int, ...]:
        """(out, in[, k, k]) or (out, in · k · k), from the sizes of w1 and w2."""
        sizes = {name: tensor.to("meta", torch.float32) for name, tensor in weights.items()}
        small, big = small_matrix(sizes).shape, big_matrix(sizes).shape
        return (small[0] * big[0], small[1] * big[1], *big[2:])

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
        """The layer's output with ΔW, from two small products."""
        dtype = base_weight(layer).dtype
        tensors = {name: leaf(slices, name, dtype) for name in slices.positions}
        output: Tensor = layer(x)
        return output + delta(layer, x, tensors, scale_of(tensors, options) * strength, dropout)


def scale_of(weights: Weights, options: Options) -> float:
    """s, which is 1 if both are full matrices."""
    return 1.0 if {"w1", "w2"} <= weights.keys() else options.scale


def delta(layer: nn.Module, x: Tensor, weights: Weights, scale: float, dropout: LayerDropout | None = None) -> Tensor:
    """What scale · w1 ⊗ w2 adds to the layer's output, with dropout of output channels."""
    change = _change(layer, x, weights, scale)
    return drop_rows(change, dropout, 1 if isinstance(layer, nn.Conv2d) else -1)


def _change(layer: nn.Module, x: Tensor, weights: Weights, scale: float) -> Tensor:
    small = small_matrix(weights) * scale
    i1 = small.shape[1]
    if isinstance(layer, nn.Conv2d):
        images = x.reshape(x.shape[0] * i1, x.shape[1] // i1, *x.shape[2:])  # (B · i1, i2, H, W)
        hidden = _convolved(layer, images, weights)  # (B · i1, o2, h, w)
        hidden = hidden.view(x.shape[0], i1, *hidden.shape[1:])
        return torch.einsum("ai,biohw->baohw", small, hidden).flatten(1, 2)
    rows = x.reshape(*x.shape[:-1], i1, -1)  # (…, i1, i2)
    if "w2" in weights:
        hidden = F.linear(rows, weights["w2"])
    else:
        hidden = F.linear(F.linear(rows, weights["w2_b"]), weights["w2_a"])  # (…, i1, o2)
    return (small @ hidden).flatten(-2)  # (…, o1 · o2)


def _convolved(layer: nn.Conv2d, x: Tensor, weights: Weights) -> Tensor:
    """The convolution with the big matrix, factor by factor."""
    size = tuple(layer.kernel_size)
    if "w2" in weights:
        big = weights["w2"]
        return convolve(layer, x, big.view(*big.shape[:2], *size))
    a, b = weights["w2_a"], weights["w2_b"]
    if "t2" in weights:
        hidden = convolve(layer, F.conv2d(x, b[:, :, None, None]), weights["t2"])
        return F.conv2d(hidden, a.t()[:, :, None, None])
    hidden = convolve(layer, x, b.view(b.shape[0], -1, *size))
    return F.conv2d(hidden, a[:, :, None, None])


def small_matrix(weights: Weights) -> Tensor:
    """w1, (o1, i1)."""
    return weights["w1"] if "w1" in weights else weights["w1_a"] @ weights["w1_b"]


def big_matrix(weights: Weights) -> Tensor:
    """w2: (o2, i2[, k, k]), or (o2, i2 · k · k) if a k×k one is low rank."""
    if "w2" in weights:
        return weights["w2"]
    if "t2" in weights:
        return tucker(weights["t2"], weights["w2_a"], weights["w2_b"])
    return weights["w2_a"] @ weights["w2_b"]
