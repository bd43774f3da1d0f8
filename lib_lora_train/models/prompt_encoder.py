"""Text encoders that are used as a whole: a prompt goes in, its condition comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class PromptEncoder(Protocol):
    """The host's own text encoders; to be used during a lease only."""

    padded_tokens: int
    """Shorter conditions are padded with zeros to this length."""

    def encode(self, prompts: Sequence[str], *, is_weighted: bool) -> list[Tensor]:
        """Each prompt's condition, (tokens, D), without padding; `is_weighted`: brackets set weights, as in webuis."""
        ...

    def weights_hash(self) -> str:
        """sha256 (hex) of the encoders' weights, under which conditions are cached."""
        ...


def pad_conditions(conditions: Sequence[Tensor], tokens: int) -> Tensor:
    """Conditions (tokens, D) as one batch (B, n, D), with zeros up to `tokens` or the longest of them."""
    length = max(tokens, *(len(condition) for condition in conditions))
    return torch.stack([torch.nn.functional.pad(one, (0, 0, 0, length - len(one))) for one in conditions])
