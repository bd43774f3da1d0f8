"""How long a run's steps will take, from the speed of past runs on this machine; no PyTorch is needed for that.

A past run's log tells what it worked on (`Workload`) and how long each step took. The time of a step is taken as
proportional to the pixels that go through the UNet in it. Nothing is guessed: without a run to go by there is no time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.events import Workload
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.runs.event_log import read_log
from lib_lora_train.runs.folder import RunFolder

_RUNS_READ = 40
_STEPS_READ = 60
_COLD_STEPS = 3  # the first ones wait for kernels to be chosen


@dataclass(frozen=True)
class Speed:
    """A past run: what it worked on, and the median of its steps' seconds."""

    run: str
    workload: Workload
    seconds: float


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of all steps; `run` is the past one that this was taken from, `pixels` its pixels per step."""

    seconds: float
    run: str
    pixels: float
    wanted_pixels: float

    @property
    def is_far(self) -> bool:
        """Whether that run's steps were so much smaller or larger that proportion says little."""
        return not 0.25 <= self.wanted_pixels / self.pixels <= 4


def workload_of(config: TrainConfig, plan: Plan, *, family: str, device: str) -> Workload:
    """What each step of the plan works on."""
    pixels = sum(bucket.width * bucket.height * bucket.sample_count for bucket in plan.buckets)
    return Workload(
        family=family,
        device=device,
        pixels_per_step=pixels / max(1, plan.steps_per_epoch),
        adapter="dora " * config.dora + f"{config.family} {config.targets}",
        checkpointing=config.gradient_checkpointing,
        text_encoder=config.train_text_encoder,
    )


def estimate_time(home: Path, wanted: Workload, steps: int) -> TimeEstimate | None:
    """The time of so many steps, by the past run in `home` that is most alike; None where none is comparable.

    Comparable is the same kind of model, on the same device (where it is known), with checkpointing as now. Of those,
    the same adapter and text encoders count first, then steps of about the same size, then the newest.
    """
    known = [speed for speed in past_speeds(home) if _is_comparable(speed.workload, wanted)]
    if not known:
        return None
    best = min(known, key=lambda speed: _distance(speed.workload, wanted))
    seconds = best.seconds * wanted.pixels_per_step / best.workload.pixels_per_step * steps
    return TimeEstimate(seconds, best.run, best.workload.pixels_per_step, wanted.pixels_per_step)


def past_speeds(home: Path) -> Iterator[Speed]:
    """The newest runs in `home` whose logs tell a speed, the newest first."""
    logs = (RunFolder(path).log for path in sorted(home.glob("*/"), reverse=True))
    for log in islice((log for log in logs if log.is_file()), _RUNS_READ):
        speed = _speed(log)
        if speed:
            yield speed


def _speed(log: Path) -> Speed | None:
    """The speed of the log's first steps, None where it tells none; no more of it is read."""
    try:
        workload, seconds = _first_steps(log)
    except (OSError, KeyError, TypeError, ValueError):  # removed meanwhile, or of another version
        return None
    warm = seconds[_COLD_STEPS:]
    if workload is None or workload.pixels_per_step <= 0 or not warm:
        return None
    return Speed(log.parent.name, workload, statistics.median(warm))


def _first_steps(log: Path) -> tuple[Workload | None, list[float]]:
    """What the run worked on, and its first steps' seconds."""
    workload, seconds = None, list[float]()
    for record in read_log(log):
        if record["kind"] == "Workload":
            workload = Workload(**{name: value for name, value in record.items() if name not in ("kind", "time")})
        elif record["kind"] == "StepDone":
            seconds.append(float(record["seconds"]))
            if len(seconds) == _STEPS_READ:
                break
    return workload, seconds


def _is_comparable(known: Workload, wanted: Workload) -> bool:
    is_here = wanted.device in ("", known.device)
    return is_here and (known.family, known.checkpointing) == (wanted.family, wanted.checkpointing)


def _distance(known: Workload, wanted: Workload) -> tuple[int, float]:
    unlike = (known.adapter != wanted.adapter) + (known.text_encoder != wanted.text_encoder)
    return unlike, round(abs(math.log(known.pixels_per_step / wanted.pixels_per_step)), 1)
