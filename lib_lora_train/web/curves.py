"""The curves of a run that the page draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import Runner

_SHOWN_POINTS = 1000
_ALL_POINTS = 2**31


def recent_curves(runner: Runner, after: int) -> dict[str, Any]:
    """The loss, gradient norm, memory and learning rates after step `after`, at most 1,000 points each.

    `after` 0 means the whole curves, thinned to that number.
    """
    points = _SHOWN_POINTS if after <= 0 else _ALL_POINTS

    def recent(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
        return [point for point in curve if point[0] > after][-_SHOWN_POINTS:]

    return {
        "loss": recent(runner.loss_curve(points)),
        "norm": recent(runner.norm_curve(points)),
        "memory_curve": recent(runner.memory_curve(points)),
        "learning_rates": {name: recent(curve) for name, curve in runner.rate_curves(points).items()},
    }
