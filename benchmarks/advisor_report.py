"""The table of `benchmarks/advisor.py`: how often an epoch and a strength are named right.

Two cells of a run, an epoch at a strength each, are *within noise* of each other if their truth differs by less than
one standard error of the difference, which is small because all cells share prompts and seeds.

*Plateau*: the cells within noise of the best one. *Best epochs*: those with a cell in it. An epoch *needs more
strength* if it is above 0 somewhere, all of its own plateau lies above strength 1, and strength 1 is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lib_lora_train.evaluation.strength_search import Trial, best_trial

Record = Mapping[str, Any]
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """What a rule names for a run, epoch 0 for none; `undertrained` are those that it says need more strength."""

    epoch: int
    strength: float = 1.0
    undertrained: tuple[int, ...] = ()


Rule = Callable[[Record], Choice]


# --- rules ---------------------------------------------------------------------------------------


def last_epoch(record: Record) -> Choice:
    """The last epoch at strength 1: what is used by those who do not test."""
    return Choice(max(epochs(record)))


def lowest_training_loss(record: Record) -> Choice:
    """The epoch with the lowest mean loss of its steps, at strength 1."""
    losses = {event["epoch"]: event["mean_loss"] for event in record["events"] if event["kind"] == "EpochDone"}
    return Choice(min(losses, key=losses.__getitem__))


def advisor(record: Record) -> Choice:
    """What the program names, and as undertrained the epochs that are best at more strength than 1.

    Of the epochs that the search did not test at other strengths, nothing is said.
    """
    advice, trials = record["advice"], record["trials"]
    found = [Trial(**{**one, "likeness": tuple(one["likeness"]), "change": tuple(one["change"])}) for one in trials]
    undertrained = [epoch for epoch in epochs(record) if _best_strength(found, epoch) > 1]
    if not advice:  # likeness has no scale
        return Choice(0, 1.0)
    return Choice(advice["epoch"], advice["strength"], tuple(undertrained))


def _best_strength(trials: Sequence[Trial], epoch: int) -> float:
    own = [trial for trial in trials if trial.epoch == epoch]
    return best_trial(own).strength if own else 1.0


ADVISOR: Rule = advisor
BASELINES: dict[str, Rule] = {"last epoch": last_epoch, "lowest training loss": lowest_training_loss}


def measured(record: Record) -> dict[int, dict[str, float]]:
    """All that was measured after each epoch of the run, by name; epoch 0 is without LoRA."""
    values: dict[int, dict[str, float]] = {}
    for event in record["events"]:
        if event["kind"] == "Measured":
            values.setdefault(event["epoch"], {}).update(event["values"])
    return values


def epochs(record: Record) -> list[int]:
    """The epochs that have a truth."""
    return sorted({cell["epoch"] for cell in record["truth"]["cells"]})


# --- truth ---------------------------------------------------------------------------------------


def is_within_noise(cell: Cell, best: Cell) -> bool:
    """Whether the cell's truth is at most one standard error of the difference below that of `best`."""
    gains = _difference(best, cell, "shown")
    harms = _difference(best, cell, "leaked") + _difference(best, cell, "damage")
    error = np.sqrt(gains.var() / len(gains) + harms.var() / len(harms))
    return bool(gains.mean() - harms.mean() <= error + 1e-9)


def _difference(first: Cell, second: Cell, name: str) -> Any:
    return np.asarray(first[name], dtype=float) - np.asarray(second[name], dtype=float)


def plateau(cells: Sequence[Cell]) -> list[Cell]:
    """The cells within noise of the best of them; of equally good ones the one nearest to strength 1 is the best."""
    best = max(cells, key=lambda cell: (cell["truth"], -abs(cell["strength"] - 1)))
    return [cell for cell in cells if is_within_noise(cell, best)]


def best_epochs(record: Record) -> list[int]:
    """The epochs that are the best at some strength."""
    return sorted({cell["epoch"] for cell in plateau(record["truth"]["cells"])})


def undertrained(record: Record) -> list[int]:
    """The epochs that need more strength than 1."""
    found = []
    for epoch in epochs(record):
        best = plateau(_of_epoch(record, epoch))
        if max(cell["truth"] for cell in best) > 0 and min(cell["strength"] for cell in best) > 1:
            found.append(epoch)
    return found


def is_strength_right(record: Record, choice: Choice) -> bool:
    """Whether the strength lies between the weakest and the strongest one of the named epoch's own plateau; without a
    named epoch, whether none is good.
    """
    if not choice.epoch:
        return not has_learnt(record)
    strengths = [cell["strength"] for cell in plateau(_of_epoch(record, choice.epoch))]
    return bool(min(strengths) <= choice.strength <= max(strengths))


def is_epoch_right(record: Record, choice: Choice) -> bool:
    """Whether the named epoch is one of the best or next to one, or none is named and none is good."""
    if not (choice.epoch and has_learnt(record)):
        return not choice.epoch and not has_learnt(record)
    return any(abs(choice.epoch - epoch) <= 1 for epoch in best_epochs(record))


def regret(record: Record, choice: Choice) -> float:
    """How far the truth of the named epoch and strength (the nearest one drawn) is below the best of the run, or below
    the 0 of no LoRA if that is better.
    """
    best = max(cell["truth"] for cell in record["truth"]["cells"])
    if not choice.epoch:
        return float(max(best, 0.0))
    named = min(_of_epoch(record, choice.epoch), key=lambda cell: abs(cell["strength"] - choice.strength))
    return float(max(best, 0.0) - named["truth"])


def has_learnt(record: Record) -> bool:
    """Whether any epoch is better than no LoRA at all; otherwise there is nothing to name."""
    return bool(max(cell["truth"] for cell in record["truth"]["cells"]) > 0)


def _of_epoch(record: Record, epoch: int) -> list[Cell]:
    return [cell for cell in record["truth"]["cells"] if cell["epoch"] == epoch]


# --- the table -----------------------------------------------------------------------------------


def report(records: Sequence[Record], advisor: Rule = ADVISOR) -> str:
    """Markdown: a row per run, and the shares of the runs whose concept may be looked at and of those kept for last."""
    rows = [_row(record, advisor(record)) for record in records]
    table = [
        "| run | truth by epoch (best strength) | best epochs | named | epoch | strength | last | loss | truth lost |",
        "| --- | --- | --- | --- | :---: | :---: | :---: | :---: | ---: |",
        *rows,
    ]
    groups = {
        "choosing": [record for record in records if not record["held_out"]],
        "held out": [record for record in records if record["held_out"]],
        "all": list(records),
        "all with a good epoch": [record for record in records if has_learnt(record)],
    }
    shares = [_shares(name, group, advisor) for name, group in groups.items()]
    head = [
        "| runs | number | epoch | strength | last epoch | lowest loss | truth lost | none good: said "
        "| more strength: found | false |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join([*head, *shares, "", *table])


def _row(record: Record, choice: Choice) -> str:
    tops = []
    for epoch in epochs(record):
        cell = max(_of_epoch(record, epoch), key=lambda one: (one["truth"], -abs(one["strength"] - 1)))
        tops.append(f"{cell['truth']:.2f} ({cell['strength']:g})")
    marks = [_mark(is_epoch_right(record, rule(record))) for rule in BASELINES.values()]
    cells = [
        record["name"],
        " · ".join(tops),
        ", ".join(map(str, best_epochs(record))) if has_learnt(record) else "none",
        f"{choice.epoch} at {choice.strength:g}" if choice.epoch else "none",
        _mark(is_epoch_right(record, choice)),
        _mark(is_strength_right(record, choice)),
        *marks,
        f"{regret(record, choice):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _shares(name: str, records: Sequence[Record], advisor: Rule) -> str:
    chosen = [(record, advisor(record)) for record in records]
    bad = [choice for record, choice in chosen if not has_learnt(record)]
    wanted = {(record["name"], epoch) for record in records for epoch in undertrained(record)}
    said = {(record["name"], epoch) for record, choice in chosen for epoch in choice.undertrained}
    cells = [
        name,
        str(len(records)),
        _share([is_epoch_right(record, choice) for record, choice in chosen]),
        _share([is_strength_right(record, choice) for record, choice in chosen]),
        *(_share([is_epoch_right(record, rule(record)) for record in records]) for rule in BASELINES.values()),
        f"{np.mean([regret(record, choice) for record, choice in chosen]):.2f}" if chosen else "–",
        f"{sum(not choice.epoch for choice in bad)} of {len(bad)}",
        f"{len(wanted & said)} of {len(wanted)}",
        f"{len(said - wanted)}",
    ]
    return f"| {' | '.join(cells)} |"


def _share(flags: Sequence[bool]) -> str:
    return f"{np.mean(flags):.0%}" if flags else "–"


def _mark(is_right: bool) -> str:
    return "yes" if is_right else "no"
