"""Orthogonal fine-tuning (Qiu et al. 2023): W' = Rᵀ W, R a rotation of the outputs in blocks.

    oft_blocks  (n, b, b), n · b = out       Q = blocks − blocksᵀ       R = (I + Q)(I − Q)⁻¹   (Cayley)

Angles between neurons are preserved. A `constraint` c keeps ‖Q‖ ≤ c · out; files store it as alpha.
`rescaled` also trains a factor for each output channel, (out, 1[, 1, 1]).

Everything is computed from R − I = 2Q (I − Q)⁻¹, which is exactly zero at the start and loses no digits near zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.delta_autograd import leaf
from lib_lora_train.adapters.dropout import LayerDropout
from lib_lora_train.adapters.families.base import Family, Weights, base_bias, base_weight, drop_rows
from lib_lora_train.adapters.families.factorization import factorisation
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.flat_parameters import Slices

_TINY = 1e-8  # guards against 0 / 0, as in the webuis


class Oft(Family):
    """Block-diagonal rotations (Diag-OFT)."""

    NAME = "oft"
    STATE_KEYS = {"blocks": "oft_blocks", "rescale": "rescale"}
    LAYOUTS = ({"blocks": "n r r", "rescale?": "_ 1 ~"},)
    DEPENDS_ON_MODEL = True

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """Identity rotations, in blocks of the largest size up to `rank` that divides the number of outputs."""
        shape = base_weight(layer).shape
        size, _ = factorisation(shape[0], options.rank)
        weights = {"blocks": torch.zeros(shape[0] // size, size, size)}
        return with_rescale(weights, shape, options)

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW = Rᵀ W − W, shaped like `base`."""
        blocks = weights["blocks"]
        rows = base.to(blocks.dtype)
        rotation = cayley_minus_identity(blocks, options.constraint * rows.shape[0])
        split = rows.reshape(*blocks.shape[:2], *rows.shape[1:])  # (n, b, in, …)
        change = torch.einsum("nab,na...->nb...", rotation, split).flatten(0, 1)
        return apply_rescale(rows, change, weights)

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
        """The layer's output, rotated without its bias: the same as rotating W, and much cheaper."""
        blocks = leaf(slices, "blocks", torch.float32)
        output: Tensor = layer(x)
        is_conv = isinstance(layer, nn.Conv2d)
        bias = base_bias(layer)
        plain = output if bias is None else output - (bias[:, None, None] if is_conv else bias)
        axis = 1 if is_conv else -1
        rotation = cayley_minus_identity(blocks, options.constraint * output.shape[axis]).to(output.dtype)
        shape = list(plain.shape)
        shape[axis : axis + 1 or None] = blocks.shape[:2]
        split = plain.reshape(shape)
        formula = "nab,Bnahw->Bnbhw" if is_conv else "nab,...na->...nb"
        change = torch.einsum(formula, rotation, split).reshape(plain.shape)
        if "rescale" in slices.positions:
            factor = leaf(slices, "rescale", torch.float32).flatten()
            shaped = factor[:, None, None] if is_conv else factor
            change = plain * (shaped - 1).to(plain.dtype) + change * shaped.to(plain.dtype)
        return output + drop_rows(change, dropout, axis) * strength

    def fixed_state(self, options: Options) -> dict[str, Tensor]:
        """The constraint, under the name that webuis read."""
        return {"alpha": torch.tensor(options.constraint, dtype=torch.float32)}

    def with_fixed(self, options: Options, fixed: Mapping[str, Tensor]) -> Options:
        """The options with the file's constraint, 0 if it has none."""
        return replace(options, constraint=float(fixed["alpha"]) if "alpha" in fixed else 0.0)


def with_rescale(weights: dict[str, Tensor], shape: torch.Size, options: Options) -> dict[str, Tensor]:
    """The weights, with factors of 1 added if `rescaled` is set."""
    factors = {"rescale": torch.ones(shape[0], *(1,) * (len(shape) - 1))}
    return {**weights, **factors} if options.rescaled else weights


def apply_rescale(base: Tensor, change: Tensor, weights: Weights) -> Tensor:
    """f ∘ (W + change) − W, exactly zero for f = 1 and change = 0."""
    if "rescale" not in weights:
        return change
    factor = weights["rescale"].reshape(-1, *(1,) * (base.dim() - 1))
    return base * (factor - 1) + change * factor


def cayley_minus_identity(blocks: Tensor, bound: float) -> Tensor:
    """R − I of each block of (…, b, b), with ‖Q‖ over all blocks at most `bound` (0: no bound)."""
    skew = blocks - blocks.transpose(-1, -2)
    if bound:
        norm = torch.linalg.vector_norm(skew)
        skew = skew * ((norm.clamp(max=bound) + _TINY) / (norm + _TINY))
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    rotation: Tensor = torch.linalg.solve(eye - skew, 2 * skew)  # (I − Q)⁻¹ and Q commute
    return rotation
