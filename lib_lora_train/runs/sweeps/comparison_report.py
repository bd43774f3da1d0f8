"""A comparison as values for JSON and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lib_lora_train.core.measures import measure_info, measure_title
from lib_lora_train.core.wording import value_text
from lib_lora_train.runs.sweeps.comparison import Comparison, Row


def comparison_values(comparison: Comparison) -> dict[str, Any]:
    """JSON-ready values: the settings that differ, the measures, and a row for each run."""
    return {
        "settings": list(comparison.settings),
        "measures": [
            {"name": name, "title": info.title, "help": info.help, "better": info.better, "digits": info.digits}
            for name in comparison.measures
            for info in (measure_info(name),)
        ],
        "rows": [_row_values(row) for row in comparison.rows],
        "winners": dict(comparison.winners),
        "notes": list(comparison.notes),
    }


def _row_values(row: Row) -> dict[str, Any]:
    file = row.result.files.get(row.choice.epoch)
    return {
        "run": row.result.run,
        "state": row.result.state,
        "reason": row.result.reason,
        "label": row_label(row),
        "settings": {place: list(v) if isinstance(v, tuple) else v for place, v in row.settings.items()},
        "texts": {place: value_text(value) for place, value in row.settings.items()},
        "epoch": row.choice.epoch,
        "why": row.choice.reason,
        "epochs": len(row.result.epochs),
        "best": dict(row.best),
        "last": dict(row.last),
        "differences": dict(row.differences),
        "file": str(file) if file else "",
    }


def row_label(row: Row) -> str:
    """`rank 16, learning_rate 1e-4`; the run's id if no setting differs."""
    return ", ".join(f"{place} {value_text(value)}" for place, value in row.settings.items()) or row.result.run


def comparison_text(comparison: Comparison) -> str:
    """An aligned table: a line for each run, * at the best value of a measure, then what cannot be compared."""
    heads = ["run", *comparison.settings, "epoch", *(measure_title(name).lower() for name in comparison.measures)]
    lines = [heads, *(_cells(comparison, number) for number in range(len(comparison.rows)))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    failures = [f"{row.result.run}: {row.result.reason}" for row in comparison.rows if row.result.reason]
    return "\n".join([*table, *_foot(comparison), *comparison.notes, *failures])


def _cells(comparison: Comparison, number: int) -> list[str]:
    row = comparison.rows[number]
    settings = [value_text(row.settings[place]) for place in comparison.settings]
    epoch = f"{row.choice.epoch} of {len(row.result.epochs)}" if row.choice.epoch else row.result.state or "–"
    winners = comparison.winners
    measures = [_measure_cell(name, row, is_best=winners.get(name) == number) for name in comparison.measures]
    return [row.result.run, *settings, epoch, *measures]


def _measure_cell(name: str, row: Row, *, is_best: bool) -> str:
    if name not in row.best:
        return "–"
    digits = measure_info(name).digits
    value, difference = (
        round(one, digits) + 0.0 for one in (row.best[name], row.differences.get(name, 0.0))
    )  # no -0.0
    text = f"{value:.{digits}f}{'*' if is_best else ''}"
    return f"{text} ({difference:+.{digits}f})" if difference else text


def _foot(comparison: Comparison) -> Sequence[str]:
    reasons = dict.fromkeys(row.choice.reason for row in comparison.rows if row.choice.epoch)
    if not reasons:
        return []
    stars = "; *: the best value" if comparison.winners else ""
    return [f"Epoch of each run: {' or '.join(reasons)}. In brackets: the difference to the first run{stars}."]
