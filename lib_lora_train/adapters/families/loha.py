"""LoHa (Hyeon-Woo et al. 2022, FedPara): ΔW = s · (w1_a @ w1_b) ∘ (w2_a @ w2_b), whose rank may reach r².

    w1_a, w2_a  (out, r)     w1_b, w2_b  (r, in · k · k)

With Tucker's form for k×k kernels each of the two is a core t (r, r, k, k) with w_a (r, out) and w_b (r, in).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Family, Weights, base_weight, is_wide_conv, normal
from lib_lora_train.adapters.families.options import Options

_STD_FIRST = 0.1  # of w1_a and t, as in LyCORIS; w1_b and w2_b have 1, and w2_a is 0, so that ΔW = 0


class Loha(Family):
    """Hadamard product of two low-rank matrices."""

    NAME = "loha"
    STATE_KEYS = {
        "w1_a": "hada_w1_a",
        "w1_b": "hada_w1_b",
        "w2_a": "hada_w2_a",
        "w2_b": "hada_w2_b",
        "t1": "hada_t1",
        "t2": "hada_t2",
    }
    SCALE_EXPONENTS = {"w1_a": 0.25, "w1_b": 0.25, "w2_a": 0.25, "w2_b": 0.25}
    LAYOUTS = (  # alpha is divided by the rank of w1, if the two differ
        {"w1_a": "o q", "w1_b": "q n", "w2_a": "o r", "w2_b": "r n"},
        {"w1_a": "q o", "w1_b": "q i", "t1": "q q *k", "w2_a": "r o", "w2_b": "r i", "t2": "r r *k"},
    )

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """w1_a ~ N(0, 0.1²), w1_b and w2_b ~ N(0, 1), w2_a = 0."""
        shape, rank = base_weight(layer).shape, options.rank
        if options.use_tucker and is_wide_conv(layer):
            kernel = (rank, rank, *shape[2:])
            return {
                "w1_a": normal((rank, shape[0]), _STD_FIRST, generator),
                "w1_b": normal((rank, shape[1]), 1.0, generator),
                "w2_a": torch.zeros(rank, shape[0]),
                "w2_b": normal((rank, shape[1]), 1.0, generator),
                "t1": normal(kernel, _STD_FIRST, generator),
                "t2": normal(kernel, _STD_FIRST, generator),
            }
        width = shape[1:].numel()
        return {
            "w1_a": normal((shape[0], rank), _STD_FIRST, generator),
            "w1_b": normal((rank, width), 1.0, generator),
            "w2_a": torch.zeros(shape[0], rank),
            "w2_b": normal((rank, width), 1.0, generator),
        }

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW, (out, in[, k, k])."""
        if "t1" in weights:
            first = tucker(weights["t1"], weights["w1_a"], weights["w1_b"])
            return first * tucker(weights["t2"], weights["w2_a"], weights["w2_b"]) * options.scale
        product = (weights["w1_a"] @ weights["w1_b"]) * (weights["w2_a"] @ weights["w2_b"])
        return (product * options.scale).view(base.shape)


def tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(out, in, k, k) of a core (r, r, k, k), `a` (r, out) and `b` (r, in), with the core's axes in LyCORIS' order."""
    return torch.einsum("pqhw,po,qi->oihw", core, a, b)
