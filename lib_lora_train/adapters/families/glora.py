"""GLoRA (Chavan et al. 2023): ΔW = b2 @ b1 + (W @ a2) @ a1, a low-rank update plus one that depends on W.

    a1  (r, in)    a2  (in, r)    b1  (r, in)    b2  (out, r)

This is the older layout, the only one that A1111 and Forge read alike. A1111 requires an alpha but ignores its value,
so it is always the rank (s = 1). Linear layers only: A1111 multiplies W as a matrix.

LyCORIS' newer layout, ΔW = s · (b1 @ b2 + W @ a1 @ a2), has 1 and 2 swapped. A1111 cannot read it; we can. It also has
convolutions, (r, …, k, k) for b2 and 1×1 for the others, where a1 and a2 mix the channels of W's inputs. No webui but
Forge and its kin reads these; `KernelGlora` keeps their layout, so that a file that is continued stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Family, Weights, base_weight, is_linear, is_plain_conv, kaiming
from lib_lora_train.adapters.families.options import Options


class Glora(Family):
    """Generalised LoRA."""

    NAME = "glora"
    STATE_KEYS = {"a1": "a1.weight", "a2": "a2.weight", "b1": "b1.weight", "b2": "b2.weight"}
    SCALE_EXPONENTS = {"a2": 1.0, "b2": 1.0}
    LAYOUTS = (
        {"a1": "r i", "a2": "i r", "b1": "r i", "b2": "o r"},
        {"a1": "i r", "a2": "r i", "b1": "o r", "b2": "r i"},  # the newer layout
        {"a1": "i r ~", "a2": "r i ~", "b1": "o r ~", "b2": "r i *k"},  # the same, of a convolution
    )
    DEPENDS_ON_MODEL = True

    def fits(self, layer: nn.Module) -> bool:
        """Linear layers."""
        return is_linear(layer)

    def adjust_options(self, _layer: nn.Module, options: Options) -> Options:
        """alpha = rank, since A1111 ignores it."""
        return replace(options, alpha=float(options.rank))

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """a1 and b1 kaiming-uniform, a2 and b2 zero."""
        out_features, in_features = base_weight(layer).shape
        rank = options.rank
        return {
            "a1": kaiming((rank, in_features), generator),
            "a2": torch.zeros(in_features, rank),
            "b1": kaiming((rank, in_features), generator),
            "b2": torch.zeros(out_features, rank),
        }

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW, (out, in)."""
        a1, a2 = weights["a1"], weights["a2"]
        return weights["b2"] @ weights["b1"] + (base.to(a1.dtype) @ a2) @ a1

    def with_fixed(self, options: Options, _fixed: Mapping[str, Tensor]) -> Options:
        """alpha = rank, whatever the file has."""
        return replace(options, alpha=float(options.rank))


class KernelGlora(Glora):
    """GLoRA of a convolution, in LyCORIS' newer layout; only for files of other trainers.

    a1 (in, r, 1, 1), a2 (r, in, 1, 1), b1 (out, r, 1, 1), b2 (r, in, k, k), and an alpha that counts.
    """

    def fits(self, layer: nn.Module) -> bool:
        """Linear layers, which have the weights of a 1×1 convolution, and plain convolutions."""
        return is_linear(layer) or is_plain_conv(layer)

    def adjust_options(self, _layer: nn.Module, options: Options) -> Options:
        """The options unchanged."""
        return options

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW, (out, in[, k, k])."""
        a1, a2, b1, b2 = (weights[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
        through = torch.einsum("oi...,ij->oj...", base.to(a1.dtype), a1 @ a2)
        return ((b1 @ b2).view(base.shape) + through) * options.scale

    def with_fixed(self, options: Options, fixed: Mapping[str, Tensor]) -> Options:
        """The options with the file's alpha; without one, or with 0, it is the rank."""
        alpha = float(fixed["alpha"]) if "alpha" in fixed else 0.0
        return replace(options, alpha=alpha or float(options.rank))


def is_newer(weights: Weights) -> bool:
    """Whether the tensors are in the newer layout.

    On a square layer the shapes fit both layouts; the rank is then the smaller dimension.
    """
    a1, a2, b1, b2 = (weights[name].shape for name in ("a1", "a2", "b1", "b2"))
    is_newer_rank = a1[1] == a2[0] == b1[1] == b2[0]
    is_older_rank = a1[0] == a2[1] == b1[0] == b2[1]
    return bool(is_newer_rank and (not is_older_rank or a1[1] < a1[0]))


def as_older(weights: Weights, scale: float) -> dict[str, Tensor]:
    """Tensors of the newer layout in the older one, with the scale multiplied in."""
    return {"a1": weights["a2"], "a2": weights["a1"] * scale, "b1": weights["b2"], "b2": weights["b1"] * scale}
