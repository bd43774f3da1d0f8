"""Compares runs: the settings in which they differ, and what was measured after their best epochs.

Nothing here reads the disk. The first run is the reference: differences are to its values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.method_catalog import METHOD_CATALOG
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.measures import measure_info, measure_title, sort_measures
from lib_lora_train.core.wording import join_names
from lib_lora_train.runs.records.run_results import RunResult
from lib_lora_train.runs.sweeps.best_epoch import EpochChoice, choose_epoch

_UNCOMPARED = ("output_name", "output_dir", "sample_prompts")


@dataclass(frozen=True)
class Row:
    """A run in a comparison: `settings` has its values of those that differ, None where it lacks the concept.

    None is also a setting that its method does not use. `best` are the measures of the best epoch, `last` those of the
    last one, and `differences` is how much `best` is above that of the first run.
    """

    result: RunResult
    settings: Mapping[str, Any]
    choice: EpochChoice
    best: Mapping[str, float]
    last: Mapping[str, float]
    differences: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """`settings` are the places of those that differ, `measures` all that any of the runs has.

    `winners` has the number of the row with the best value of each measure that has a better side and was taken alike
    in all runs. `notes` say which were not, and why.
    """

    settings: tuple[str, ...]
    measures: tuple[str, ...]
    rows: tuple[Row, ...]
    winners: Mapping[str, int]
    notes: tuple[str, ...]


def compare(results: Sequence[RunResult]) -> Comparison:
    """The runs side by side, in their order."""
    values = [_settings_in_use(result.config) for result in results]
    settings = _differing(values)
    choices = [choose_epoch(result.measured, _usable_epochs(result), result.advised) for result in results]
    best = [_measures_of(result, choice.epoch) for result, choice in zip(results, choices, strict=True)]
    rows = tuple(
        Row(
            result=result,
            settings={place: mine.get(place) for place in settings},
            choice=choice,
            best=values_now,
            last=_measures_of(result, max(result.epochs, default=0)),
            differences={name: value - best[0][name] for name, value in values_now.items() if name in best[0]},
        )
        for result, mine, choice, values_now in zip(results, values, choices, best, strict=True)
    )
    measures = sort_measures(name for row in rows for name in (*row.best, *row.last))
    obstacles = {name: _obstacles(name, settings) for name in measures}
    winners = _winners([name for name in measures if not obstacles[name]], rows)
    return Comparison(settings, measures, rows, winners, tuple(_notes(obstacles)))


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting by place, those of concepts too: `concepts[1].trigger`."""
    concepts = {
        f"concepts[{number}].{parameter.name}": getattr(concept, parameter.name)
        for number, concept in enumerate(config.concepts, start=1)
        for parameter in parameters_of(Concept)
    }
    return {**{p.name: getattr(config, p.name) for p in parameters_of(TrainConfig)}, **concepts}


def _settings_in_use(config: TrainConfig) -> dict[str, Any]:
    """`flat_settings` without those that the method of the run does not use."""
    unused = METHOD_CATALOG[config.method].unused
    return {place: value for place, value in flat_settings(config).items() if place not in unused}


def _differing(values: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The places whose values differ between the runs that have them, except names of files and prompts.

    A concept that a run lacks is a difference, a setting that its method does not use is none.
    """
    places = dict.fromkeys(place for one in values for place in one if place not in _UNCOMPARED)
    known = {place: [one.get(place) for one in values if place in one or _is_concept(place)] for place in places}
    return tuple(place for place, found in known.items() if any(value != found[0] for value in found))


def _is_concept(place: str) -> bool:
    return place.startswith("concepts[")


def _usable_epochs(result: RunResult) -> list[int]:
    """The finished epochs with a LoRA file; all of them if none has one any more."""
    return [epoch for epoch in result.epochs if epoch in result.files] or list(result.epochs)


def _measures_of(result: RunResult, epoch: int) -> dict[str, float]:
    """What was measured after an epoch; nothing of a run without epochs."""
    values = result.measured.get(epoch, {}) if epoch else {}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _winners(measures: Iterable[str], rows: Sequence[Row]) -> dict[str, int]:
    winners = {}
    for name in measures:
        better = measure_info(name).better
        known = [(row.best[name], number) for number, row in enumerate(rows) if name in row.best]
        if better and len(known) > 1:
            best = (min if better == "lower" else max)(value for value, _ in known)
            holders = [number for value, number in known if value == best]
            if len(holders) == 1:  # a tie has no winner
                winners[name] = holders[0]
    return winners


def _obstacles(measure: str, settings: Sequence[str]) -> tuple[str, ...]:
    """The settings in which the runs differ and without which a measure means something else."""
    names = dict.fromkeys(place.rpartition(".")[2] for place in settings)
    return tuple(name for name in names if name in measure_info(measure).tied_to)


def _notes(obstacles: Mapping[str, tuple[str, ...]]) -> Iterable[str]:
    """Which measures were not taken in the same way in all runs, and why."""
    for reasons in dict.fromkeys(filter(None, obstacles.values())):
        titles = [measure_title(name) for name, own in obstacles.items() if own == reasons]
        verb = "was" if len(titles) == 1 else "were"
        yield (
            f"{join_names(titles)} {verb} not measured alike, as the runs differ in {join_names(reasons)}. Look at the "
            "samples instead."
        )
