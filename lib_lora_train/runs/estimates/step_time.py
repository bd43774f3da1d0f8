"""Estimate how long a run's steps will take, from past runs on this machine. Does not import PyTorch.

A past run's log has its `Workload` and the time of each step. The time per step is assumed to be proportional to the
pixels that go through the UNet. Without a comparable run there is no estimate.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lib_lora_train.config.method_catalog import trains_text
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.events import Workload
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.preserved_captions import preserves_prompts
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder

_RUNS_READ = 40
_STEPS_READ = 60
_COLD_STEPS = 3  # the first steps are slow while kernels are selected


@dataclass(frozen=True)
class Speed:
    """A past run's workload and its median seconds per step."""

    run: str
    workload: Workload
    seconds: float


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds for all steps, estimated from the past `run`, which had `pixels` per step."""

    seconds: float
    run: str
    pixels: float
    target_pixels: float

    @property
    def is_extrapolated(self) -> bool:
        """Whether that run's steps were more than 4 times smaller or larger, which makes the estimate unreliable."""
        return not 0.25 <= self.target_pixels / self.pixels <= 4


def describe_workload(config: TrainConfig, plan: Plan, *, architecture: str, device: str) -> Workload:
    """The workload of the plan's steps."""
    pixels = sum(bucket.width * bucket.height * bucket.sample_count for bucket in plan.buckets)
    return Workload(
        family=architecture,
        device=device,
        pixels_per_step=relative_step_cost(config) * pixels / max(1, plan.steps_per_epoch),
        adapter=_describe_adapter(config),
        checkpointing=config.gradient_checkpointing,
        text_encoder=trains_text(config),
    )


def _describe_adapter(config: TrainConfig) -> str:
    if config.method != "lora":
        return config.method
    return "dora " * config.dora + f"{config.family} {config.targets}"


def relative_step_cost(config: TrainConfig) -> float:
    """A step's passes of the UNet, in units of one forward and one backward pass, which cost about the same.

    The backward pass of a frozen model costs a forward pass, since hardly any weight has a gradient. A pass without
    LoRA therefore counts 0.5, and prior preservation needs one of these and one with gradients.
    """
    has_masks = any(concept.use_masks for concept in config.concepts)
    masked = 0.5 if has_masks and config.masked_prior_preservation_weight else 0.0
    return 1.0 + masked + (1.5 if preserves_prompts(config) else 0.0)


def estimate_time(home: Path, target: Workload, steps: int) -> TimeEstimate | None:
    """The time for `steps`, from the most similar past run in `home`; None if none is comparable.

    Comparable runs have the same architecture, device (if known) and gradient checkpointing. Among those, runs with the
    same adapter and text encoder training come first, then those with a similar step size, then the newest.
    """
    comparable = [speed for speed in past_speeds(home) if _is_comparable(speed.workload, target)]
    if not comparable:
        return None
    best = min(comparable, key=lambda speed: _dissimilarity(speed.workload, target))
    seconds = best.seconds * target.pixels_per_step / best.workload.pixels_per_step * steps
    return TimeEstimate(seconds, best.run, best.workload.pixels_per_step, target.pixels_per_step)


def past_speeds(home: Path) -> Iterator[Speed]:
    """Speeds of the newest runs in `home`, newest first; skips runs without enough steps."""
    logs = (RunFolder(path).log for path in sorted(home.glob("*/"), reverse=True))
    for log in islice((log for log in logs if log.is_file()), _RUNS_READ):
        speed = _speed(log)
        if speed:
            yield speed


def _speed(log: Path) -> Speed | None:
    """The speed in the log's first steps, None if there are too few; does not read the rest."""
    try:
        workload, seconds = _first_steps(log)
    except (OSError, KeyError, TypeError, ValueError):  # removed meanwhile, or written by another version
        return None
    warm = seconds[_COLD_STEPS:]
    if workload is None or workload.pixels_per_step <= 0 or not warm:
        return None
    return Speed(log.parent.name, workload, statistics.median(warm))


def _first_steps(log: Path) -> tuple[Workload | None, list[float]]:
    """The run's workload and the seconds of its first steps."""
    workload, seconds = None, list[float]()
    for record in read_log(log):
        if record["kind"] == "Workload":
            workload = Workload(**{name: value for name, value in record.items() if name not in ("kind", "time")})
        elif record["kind"] == "StepDone":
            seconds.append(float(record["seconds"]))
            if len(seconds) == _STEPS_READ:
                break
    return workload, seconds


def _is_comparable(known: Workload, target: Workload) -> bool:
    same_device = target.device in ("", known.device)
    return same_device and (known.family, known.checkpointing) == (target.family, target.checkpointing)


def _dissimilarity(known: Workload, target: Workload) -> tuple[int, float]:
    differences = (known.adapter != target.adapter) + (known.text_encoder != target.text_encoder)
    return differences, round(abs(math.log(known.pixels_per_step / target.pixels_per_step)), 1)
