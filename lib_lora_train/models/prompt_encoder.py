"""Text encoders that are used as a whole: a prompt goes in, its condition comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class PromptEncoder(Protocol):
    """The host's own text encoders; to be used during a lease only."""

    padded_tokens: int
    """All conditions are padded with zeros, or cut, to this length."""

    def encode(self, prompts: Sequence[str], *, is_weighted: bool) -> list[Tensor]:
        """Each prompt's condition, (tokens, D), without padding; `is_weighted`: brackets set weights, as in webuis."""
        ...

    def tokens(self, texts: Sequence[str]) -> list[list[str]]:
        """The tokens of each text as text, without an end token; needs no lease."""
        ...

    @property
    def emphasis(self) -> str:
        """How brackets are read where they set weights: the name of the host's setting, which caches depend on."""
        ...

    def weights_hash(self) -> str:
        """sha256 (hex) of the encoders' weights, under which conditions are cached."""
        ...


def pad_conditions(conditions: Sequence[Tensor], tokens: int) -> Tensor:
    """Conditions (n, D) as one batch (B, tokens, D): shorter ones with zeros at their end, longer ones cut.

    All have the same length, since zeros count in attention: a caption must not depend on its neighbours in a batch.
    """
    cut = [condition[:tokens] for condition in conditions]
    return torch.stack([torch.nn.functional.pad(one, (0, 0, 0, tokens - len(one))) for one in cut])
