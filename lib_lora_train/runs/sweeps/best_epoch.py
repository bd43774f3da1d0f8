"""Which epoch of a run is compared with those of other runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lib_lora_train.core.measures import LIKENESS, VALIDATION_LOSS, measure_info


@dataclass(frozen=True)
class EpochChoice:
    """An epoch, 0 if the run has none, and why it was chosen."""

    epoch: int
    reason: str


def choose_epoch(measured: Mapping[int, Mapping[str, float]], epochs: Collection[int], advised: int = 0) -> EpochChoice:
    """The best of these epochs: the `advised` one, else that with the lowest validation loss, else with the highest
    likeness, else the last one.
    """
    if advised in epochs:
        return EpochChoice(advised, "recommended")
    for name in (VALIDATION_LOSS, LIKENESS):
        values = {epoch: measured[epoch][name] for epoch in sorted(epochs) if name in measured.get(epoch, {})}
        if values:
            info = measure_info(name)
            best = (min if info.better == "lower" else max)(values, key=lambda epoch: values[epoch])
            return EpochChoice(best, f"{'lowest' if info.better == 'lower' else 'highest'} {info.title.lower()}")
    return EpochChoice(max(epochs), "last epoch") if epochs else EpochChoice(0, "no epoch finished")
