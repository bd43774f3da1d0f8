"""Typed progress: everything a run has to tell, as frozen values in the order they happened.

The training loop and the arrows around it *yield* these; the job writes them to its log, the page,
the command line and TensorBoard read them from there. `to_record` and `from_record` translate
to and from one line of JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["load", "scan", "latents", "text", "train", "samples", "grid", "evaluate"]


@dataclass(frozen=True)
class PhaseStarted:
    """A phase of the run began; `total` is its number of units (images, steps, samples), 0 if unknown."""

    phase: Phase
    total: int = 0


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a phase are finished."""

    phase: Phase
    done: int
    total: int


@dataclass(frozen=True)
class PhaseEnded:
    """A phase ended after `seconds` of wall time (pauses not counted)."""

    phase: Phase
    seconds: float


@dataclass(frozen=True)
class Planned:
    """The plan in numbers, before anything heavy starts."""

    images: int
    regularisation_images: int
    steps_per_epoch: int
    epochs: int
    total_steps: int


@dataclass(frozen=True)
class Workload:
    """What the run's steps work on: with their seconds, it tells how long later runs will take.

    `family` is the model's (sd1 …), `device` the card's name, `pixels_per_step` those of all images of a step on
    average, `adapter` its mathematics and targets.
    """

    family: str
    device: str
    pixels_per_step: float
    adapter: str
    checkpointing: bool
    text_encoder: bool


@dataclass(frozen=True)
class StepDone:
    """One optimiser step: `loss` is the mean over its micro-batches, `learning_rates` by group name.

    `learning_rates` are the effective ones: d·lr for the adaptive optimisers. `norms`, where they are limited: how many
    layers were scaled down, and the average and largest norm after that.
    """

    step: int
    epoch: int
    loss: float
    learning_rates: Mapping[str, float]
    grad_norm: float
    seconds: float
    norms: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class EpochDone:
    """All steps of `epoch` (1-based) were taken; `mean_loss` is over these steps."""

    epoch: int
    step: int
    mean_loss: float


@dataclass(frozen=True)
class LoraWritten:
    """A LoRA file stands complete at `path`."""

    path: str
    epoch: int
    step: int


@dataclass(frozen=True)
class LoraRemoved:
    """A LoRA file of this run was deleted, since only the last ones are kept."""

    path: str


@dataclass(frozen=True)
class StateSaved:
    """From `path` the run can go on after `step`, exactly as if it had never been interrupted."""

    path: str
    step: int


@dataclass(frozen=True)
class Resumed:
    """The run goes on after `step`; what was told of later steps before is void."""

    step: int


@dataclass(frozen=True)
class SampleDrawn:
    """A sample image stands at `path`; `epoch` 0 means without LoRA, `step` 0 the end of the epoch."""

    path: str
    epoch: int
    prompt: str
    seed: int
    step: int = 0


@dataclass(frozen=True)
class GridDrawn:
    """The epochs × prompts grid stands at `path`."""

    path: str


VALIDATION_LOSS = "validation_loss"
"""The loss on images kept from training, among the numbers that are measured."""


@dataclass(frozen=True)
class Measured:
    """Numbers measured for one epoch (0: without LoRA), by name."""

    epoch: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Noted:
    """Something the user should know; the run goes on. `where` is a file or a parameter."""

    level: Literal["warning", "hint"]
    where: str
    message: str


@dataclass(frozen=True)
class StateChanged:
    """The run as a whole changed its state."""

    state: Literal["queued", "running", "paused", "waiting", "stopping", "stopped", "finished", "failed"]
    message: str = ""


Event = (
    PhaseStarted
    | Progress
    | PhaseEnded
    | Planned
    | Workload
    | StepDone
    | EpochDone
    | LoraWritten
    | LoraRemoved
    | StateSaved
    | Resumed
    | SampleDrawn
    | GridDrawn
    | Measured
    | Noted
    | StateChanged
)

_KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        PhaseStarted,
        Progress,
        PhaseEnded,
        Planned,
        Workload,
        StepDone,
        EpochDone,
        LoraWritten,
        LoraRemoved,
        StateSaved,
        Resumed,
        SampleDrawn,
        GridDrawn,
        Measured,
        Noted,
        StateChanged,
    )
}


def to_record(event: Event) -> dict[str, Any]:
    """The event as JSON-ready values, its class name under `kind`."""
    return {"kind": type(event).__name__, **dataclasses.asdict(event)}


def from_record(record: Mapping[str, Any]) -> Event:
    """The event that `to_record` described; KeyError for an unknown kind."""
    values = dict(record)
    return _KINDS[values.pop("kind")](**values)
