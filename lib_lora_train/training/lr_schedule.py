"""Learning-rate factors as pure functions of the step.

`step` counts finished optimiser steps, so the first step uses factor(0): with a warm-up that is 0, as in diffusers and
sd-scripts, whose names the schedules have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lib_lora_train.config.train_config import TrainConfig, duration_in_steps

_LONG_TIMESCALE = 10_000  # steps; transformers' default for inverse_sqrt without a timescale or warm-up


@dataclass(frozen=True)
class LrSchedule:
    """A schedule with everything it depends on; lengths in optimiser steps.

    `decay` is warmup_stable_decay's, `cycles` cosine_with_restarts', `power` polynomial's, `timescale`
    inverse_sqrt's (None: as long as the warm-up); `min_ratio` is the final factor of polynomial,
    warmup_stable_decay and cosine_with_min_lr.
    """

    kind: str
    total_steps: int
    warmup: int = 0
    decay: int = 0
    cycles: int = 1
    power: float = 1.0
    timescale: int | None = None
    min_ratio: float = 0.0


def lr_schedule(config: TrainConfig, total_steps: int) -> LrSchedule:
    """The schedule that the settings describe for a run of `total_steps`."""
    return LrSchedule(
        kind=config.lr_schedule,
        total_steps=total_steps,
        warmup=duration_in_steps(config.warmup, total_steps),
        decay=duration_in_steps(config.lr_decay, total_steps),
        cycles=config.lr_cycles,
        power=config.lr_power,
        timescale=config.lr_timescale,
        min_ratio=config.lr_min_ratio,
    )


def lr_factor(schedule: LrSchedule, step: int) -> float:
    """The factor of the learning rate at `step`, in [0, 1].

    The warm-up rises linearly from 0; warmup_stable_decay's starts at `min_ratio`, as in transformers.
    """
    if step < schedule.warmup:
        start = schedule.min_ratio if schedule.kind == "warmup_stable_decay" else 0.0
        return _rescale(start, step / schedule.warmup)
    return _CURVES[schedule.kind](schedule, step)


def linear(progress: float) -> float:
    """1 − progress, not below 0."""
    return max(0.0, 1.0 - progress)


def cosine(progress: float) -> float:
    """½ (1 + cos π·progress), half a period from 1 to 0 (Loshchilov & Hutter 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def polynomial(progress: float, power: float) -> float:
    """(1 − progress)^power, not below 0."""
    return math.pow(linear(progress), power)


def inverse_sqrt(steps: int, timescale: int) -> float:
    """1 / √(1 + steps / timescale): 1 at first, ½ after three timescales, never 0."""
    return 1.0 / math.sqrt((steps + timescale) / timescale)


def _progress(schedule: LrSchedule, step: int) -> float:
    """Share of the steps after the warm-up that are done."""
    return (step - schedule.warmup) / max(1, schedule.total_steps - schedule.warmup)


def _rescale(minimum: float, factor: float) -> float:
    """`factor` in 0…1 scaled to minimum…1."""
    return factor * (1.0 - minimum) + minimum


def _constant(schedule: LrSchedule, step: int) -> float:  # noqa: ARG001  one signature for all
    return 1.0


def _linear(schedule: LrSchedule, step: int) -> float:
    return linear(_progress(schedule, step))


def _cosine(schedule: LrSchedule, step: int) -> float:
    return cosine(_progress(schedule, step))


def _cosine_with_restarts(schedule: LrSchedule, step: int) -> float:
    """Computed in integers, so that each restart is at the full rate; rounding could make it 0."""
    length, done = schedule.total_steps - schedule.warmup, step - schedule.warmup
    return 0.0 if done >= length else cosine(schedule.cycles * done % length / length)


def _cosine_with_min_lr(schedule: LrSchedule, step: int) -> float:
    return _rescale(schedule.min_ratio, _cosine(schedule, step))


def _polynomial(schedule: LrSchedule, step: int) -> float:
    return _rescale(schedule.min_ratio, polynomial(_progress(schedule, step), schedule.power))


def _inverse_sqrt(schedule: LrSchedule, step: int) -> float:
    return inverse_sqrt(step - schedule.warmup, schedule.timescale or schedule.warmup or _LONG_TIMESCALE)


def _warmup_stable_decay(schedule: LrSchedule, step: int) -> float:
    """Hu et al. 2024 (MiniCPM), section 4; the last `decay` steps fall like a cosine, as in transformers."""
    start = max(schedule.warmup, schedule.total_steps - schedule.decay)
    if step < start:
        return 1.0
    return _rescale(schedule.min_ratio, cosine((step - start) / max(1, schedule.total_steps - start)))


_CURVES: dict[str, Callable[[LrSchedule, int], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
    "adafactor": _constant,  # the optimiser chooses its own step size
}
