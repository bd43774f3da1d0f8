"""OFT of inputs (Qiu et al. 2025, OFTv2), as PEFT and OneTrainer train it; only for reading their files.

    weight  (n, b · (b − 1) / 2), n · b = in · k · k, or n = 1: one block for all      W' = W Rᵀ

A row holds the upper triangle of Q, row by row; the lower one is its negative. R is a Cayley transform of Q, block by
block: exactly, (I − Q)(I + Q)⁻¹, or the first terms of (I + Q)(I − Q)⁻¹ = I + 2Q + 2Q² + …, the last one once. The two
turn in opposite directions, and the file shows neither; PEFT's `adapter_config.json` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.families.base import Family, Weights
from lib_lora_train.adapters.families.options import Options


@dataclass(frozen=True)
class InputOft(Family):
    """Rotations of the inputs in blocks.

    Attributes:
        terms: how many of the series PEFT counts, 0 for the exact transform
        turns_back: W R in place of W Rᵀ for convolutions, as OneTrainer does
        is_scaled: Q is divided by 2 √(b − 1), OneTrainer's *scaled OFT*
    """

    terms: int = 5
    turns_back: bool = False
    is_scaled: bool = False

    NAME = "OFT of inputs"
    STATE_KEYS = {"weight": "oft_R.weight"}
    LAYOUTS = ({"weight": "_ _"},)
    DEPENDS_ON_MODEL = True
    IS_TRAINED_HERE = False

    def init_weights(self, layer: nn.Module, options: Options, generator: torch.Generator) -> dict[str, Tensor]:
        """Never called: it is not trained here."""
        raise NotImplementedError

    def diff_weight(self, weights: Weights, options: Options, base: Tensor) -> Tensor:
        """ΔW = W Rᵀ − W, shaped like `base`; for convolutions perhaps W R − W."""
        turned = self._rotation_minus_identity(weights["weight"])  # (n or 1, b, b)
        rows = base.to(turned.dtype).reshape(base.shape[0], -1, turned.shape[-1])  # (out, n, b)
        if turned.shape[0] not in (1, rows.shape[1]):
            raise ValueError("the blocks do not fit the inputs")
        formula = "onb,nbc->onc" if self.turns_back and base.dim() == 4 else "onb,ncb->onc"
        return torch.einsum(formula, rows, turned.expand(rows.shape[1], -1, -1)).reshape(base.shape)

    def _rotation_minus_identity(self, upper: Tensor) -> Tensor:
        size = round((1 + (1 + 8 * upper.shape[1]) ** 0.5) / 2)
        if size * (size - 1) // 2 != upper.shape[1]:
            raise ValueError(f"a row of {upper.shape[1]} is no upper triangle")
        rows, columns = torch.triu_indices(size, size, 1, device=upper.device)
        triangle = torch.zeros(len(upper), size * size, dtype=upper.dtype, device=upper.device)
        triangle = triangle.index_copy(1, rows * size + columns, upper).view(-1, size, size)
        skew = (triangle - triangle.transpose(1, 2)) / (2 * (size - 1) ** 0.5 if self.is_scaled else 1)
        if not self.terms:
            eye = torch.eye(size, dtype=upper.dtype, device=upper.device)
            exact: Tensor = torch.linalg.solve(eye + skew, -2 * skew)  # (I + Q)⁻¹ and Q commute
            return exact
        power, total = skew, 2 * skew
        highest = max(3, self.terms - 1) if self.terms > 2 else 1
        for exponent in range(2, highest + 1):
            power = power @ skew
            total = total + (power if exponent == highest else 2 * power)
        return total if self.terms > 1 else torch.zeros_like(total)
