"""The adapter's random dropout in training: a function of seed, counters and the layer's name.

Nothing carries over from one micro-batch to the next, so a resumed run drops what an uninterrupted one would have
dropped, and a forward pass repeated by gradient checkpointing drops the same again.
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
    def is_active(self) -> bool:
        """Whether anything is dropped."""
        return max(self.dropout, self.rank_dropout, self.module_dropout) > 0


@dataclass(frozen=True)
class DropoutState:
    """The dropout of one micro-batch. `counters` identify it: the step, and the micro-batch within the step."""

    rates: DropoutRates
    seed: int
    counters: tuple[int, ...]

    def skips_layer(self, key: str) -> bool:
        """Whether the layer's update is left out of this micro-batch (module dropout)."""
        rate = self.rates.module_dropout
        return rate > 0 and random_for(self.seed, f"module dropout/{key}", *self.counters).random() < rate

    def for_layer(self, key: str) -> LayerDropout:
        """What the layer drops. `dylora_position` is shared: all layers train the same rank (DyLoRA, Algorithm 1)."""
        return LayerDropout(
            seed=seed_for(self.seed, f"dropout/{key}", *self.counters),
            neuron_dropout=self.rates.dropout,
            rank_dropout=self.rates.rank_dropout,
            dylora_position=random_for(self.seed, "dylora", *self.counters).random(),
        )


@dataclass(frozen=True)
class LayerDropout:
    """The dropout of one layer in one micro-batch.

    Args:
        seed: of the masks
        neuron_dropout: share of the rank-size activations that are dropped
        rank_dropout: share of ranks, per sample, or of ΔW's rows (`drop_rows`)
        dylora_position: in [0, 1); selects the rows that DyLoRA trains
    """

    seed: int
    neuron_dropout: float
    rank_dropout: float
    dylora_position: float

    @property
    def is_active(self) -> bool:
        """Whether any activation or rank is dropped."""
        return self.neuron_dropout > 0 or self.rank_dropout > 0
