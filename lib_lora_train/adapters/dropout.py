"""What is random inside an adapter during training: a function of seed, counters and the layer's name.

Nothing is kept from one micro-batch to the next, so a resumed run drops what an uninterrupted one would have dropped,
and a forward pass that gradient checkpointing repeats drops the same again.
"""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.core.seeding import random_for, seed_for


@dataclass(frozen=True)
class DropoutRates:
    """dropout: share of rank-size activations; rank_dropout: of ranks or ΔW's rows; module_dropout: of layers."""

    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        return max(self.dropout, self.rank_dropout, self.module_dropout) > 0


@dataclass(frozen=True)
class DropoutState:
    """The randomness of one micro-batch. `counters` name it: the step, and the micro-batch within the step."""

    rule: DropoutRates
    seed: int
    counters: tuple[int, ...]

    def skips(self, key: str) -> bool:
        """Whether the layer's update is left out of this micro-batch."""
        rate = self.rule.module_dropout
        return rate > 0 and random_for(self.seed, f"module dropout/{key}", *self.counters).random() < rate

    def draw(self, key: str) -> Draw:
        """What the layer drops. All layers share `block`: one size of DyLoRA is trained at a time (Algorithm 1)."""
        return Draw(
            seed=seed_for(self.seed, f"dropout/{key}", *self.counters),
            dropout=self.rule.dropout,
            rank_dropout=self.rule.rank_dropout,
            block=random_for(self.seed, "dylora", *self.counters).random(),
        )


@dataclass(frozen=True)
class Draw:
    """The randomness of one layer in one micro-batch, a function of seed, counters and the layer's name.

    dropout: share of the rank-size activations that are dropped; rank_dropout: share of ranks, per sample, or of rows
    of ΔW (`kept_rows`);
    block: DyLoRA's number in [0, 1) that chooses the rows to train.
    """

    seed: int
    dropout: float = 0.0
    rank_dropout: float = 0.0
    block: float = 0.0

    @property
    def drops(self) -> bool:
        """Whether anything is dropped."""
        return self.dropout > 0 or self.rank_dropout > 0
