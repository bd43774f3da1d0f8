"""The search for the best epoch and strength of a run, over *trials*: one epoch drawn at one strength each.

Every trial shares the prompts and seeds of the run's samples, so that two trials are compared image by image. Its score
is what the concept gains less what everything else loses:

    score = mean likeness - mean change of the control images, each at most 1

Where two trials score alike, the strength nearer to 1 is better: prompts and other LoRAs are used to it. A whole unit
of strength has to be worth a tenth.

All epochs are tried at strength 1 first, from the samples that exist. Then the best trial so far is held against its
neighbours, the next weaker and stronger one and the epochs beside it at its strength, until none of them is better.

When it is wrong: it sees only what the sample prompts ask for. Likeness and change are means over a few images;
differences smaller than their standard error are called equal. Does not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, TypeVar

_T = TypeVar("_T")

STRENGTHS = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
"""The strengths that are tried."""

_DISTANCE_WEIGHT = 0.1  # what a unit of strength away from 1 has to gain

MAX_TRIALS = 8
"""How many trials are made beside those at strength 1."""


class TrialPlace(NamedTuple):
    """An epoch at a strength."""

    epoch: int
    strength: float


@dataclass(frozen=True)
class Trial:
    """What came of an epoch at a strength: the likeness of each concept sample and the change of each control sample.

    `likeness`: 0 is without LoRA, 1 as like as the training images are to each other. `change`: 0 is none, 1 another
    image. `roughness`: of the plain parts of all samples, in units of that without the LoRA.
    """

    epoch: int
    strength: float
    likeness: tuple[float, ...]
    change: tuple[float, ...] = ()
    roughness: float = 1.0

    @property
    def place(self) -> TrialPlace:
        """Where it was made."""
        return TrialPlace(self.epoch, self.strength)


def score(trial: Trial) -> float:
    """At most 1; 0 is worth as much as no LoRA."""
    return fmean(gains(trial)) - fmean(harms(trial) or [0.0])


def gains(trial: Trial) -> list[float]:
    """What each concept sample adds to the score; at most 1, so that a copy does not make up for another sample."""
    return [min(likeness, 1.0) for likeness in trial.likeness]


def harms(trial: Trial) -> list[float]:
    """What each control image takes from the score, at most 1, by which it is another image."""
    return [min(change, 1.0) for change in trial.change]


def best_trial(trials: Iterable[Trial]) -> Trial:
    """The trial with the highest score less what its strength should gain; of equal ones that of the earliest epoch."""
    return max(trials, key=lambda trial: (score(trial) - _DISTANCE_WEIGHT * abs(trial.strength - 1), -trial.epoch))


def next_place(trials: Sequence[Trial], epochs: Sequence[int]) -> TrialPlace | None:
    """Which trial to make next, of these epochs in their order; None when no further one would help."""
    known = {trial.place for trial in trials}
    untried = [place for epoch in epochs if (place := TrialPlace(epoch, 1.0)) not in known]
    if untried:
        return untried[0]
    of_these = [trial for trial in trials if trial.epoch in epochs]
    if not of_these or sum(trial.strength != 1.0 for trial in of_these) >= MAX_TRIALS:
        return None
    return next((place for place in _neighbours(best_trial(of_these).place, epochs) if place not in known), None)


def _neighbours(place: TrialPlace, epochs: Sequence[int]) -> Iterator[TrialPlace]:
    """The next stronger and weaker one, then the epochs beside it at the same strength."""
    for near in _beside(STRENGTHS, place.strength):
        yield TrialPlace(place.epoch, near)
    for near in _beside(epochs, place.epoch):
        yield TrialPlace(near, place.strength)


def _beside(values: Sequence[_T], value: _T) -> Sequence[_T]:
    at = values.index(value)
    return [*values[at + 1 : at + 2], *values[max(0, at - 1) : at]]
