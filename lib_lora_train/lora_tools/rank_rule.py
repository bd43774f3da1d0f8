"""How many singular values of a layer are kept: a rank, or a rule by how fast they fall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lib_lora_train.core.errors import AdapterError

RANK_RULES = ("sv_ratio", "sv_cumulative", "sv_fro")


@dataclass(frozen=True)
class RankRule:
    """How many singular values of a layer are kept, at least one.

    Attributes:
        rank: the largest number; 0: no limit
        conv_rank: the same for kernels larger than 1×1; None: as `rank`
        rule: `sv_ratio` keeps values above 1/threshold of the largest, `sv_cumulative` the fewest whose sum is this
            share of the sum of all, `sv_fro` the fewest whose matrix has this share of ΔW's Frobenius norm, each of
            them one value more, as sd-scripts does; "": `rank`
        threshold: above 1 for `sv_ratio`, else above 0 and at most 1
    """

    rank: int = 0
    conv_rank: int | None = None
    rule: str = ""
    threshold: float = 0.0

    @property
    def name(self) -> str:
        """A word for file names: `rank16`, `sv_fro0.9`."""
        return f"{self.rule}{self.threshold:g}" if self.rule else f"rank{self.rank}"

    def check(self) -> None:
        """AdapterError for a rule that says nothing, or a number out of range."""
        if self.rule and self.rule not in RANK_RULES:
            raise AdapterError(f"{self.rule!r} is not a rule for ranks. Choose one of {', '.join(RANK_RULES)}.")
        if self.rank < 0 or (self.conv_rank is not None and self.conv_rank < 1):
            raise AdapterError("A rank must be 1 or more.")
        if not self.rule and self.rank < 1:
            raise AdapterError(f"Give the new rank, or one of {', '.join(RANK_RULES)}.")
        if self.rule == "sv_ratio" and not 1 < self.threshold < float("inf"):
            raise AdapterError(f"sv_ratio must be above 1, not {self.threshold:g}; 2 to 20 is usual.")
        if self.rule in ("sv_cumulative", "sv_fro") and not 0 < self.threshold <= 1:
            raise AdapterError(f"{self.rule} must be above 0 and at most 1, not {self.threshold:g}; 0.9 is usual.")

    def rank_of(self, values: Tensor, *, is_conv: bool = False) -> int:
        """The rank for a layer with these singular values (n,), largest first."""
        most = self.conv_rank if is_conv and self.conv_rank is not None else self.rank
        return max(1, min(self._wanted(values), most or len(values), len(values)))

    def _wanted(self, values: Tensor) -> int:
        if not self.rule or float(values[0]) <= 0:
            return len(values) if not self.rule else 1
        if self.rule == "sv_ratio":
            return int((values > values[0] / self.threshold).sum()) + 1
        parts, target = (values, self.threshold) if self.rule == "sv_cumulative" else (values**2, self.threshold**2)
        share = parts.cumsum(0) / parts.sum()
        return int((share < target).sum()) + 2


def describe_ranks(ranks: Mapping[str, int]) -> str:
    """`ranks 2 to 16, 7.5 on average`, or the only one: `rank 8`."""
    found = ranks.values()
    if min(found) == max(found):
        return f"rank {min(found)}"
    return f"ranks {min(found)} to {max(found)}, {sum(found) / len(found):.1f} on average"
