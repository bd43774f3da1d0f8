"""Progress events of a run, as frozen values in the order they happened.

The training loop and the steps around it *yield* them. The trainer appends them to the run's log; the page, the
command line and TensorBoard all show the same events. `to_record` and `from_record` convert to and from JSON.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["load", "scan", "latents", "text", "train", "samples", "grid", "evaluate"]

PHASE_TITLES: Mapping[Phase, str] = {
    "load": "Loading the model",
    "scan": "Reading the dataset",
    "latents": "Encoding images",
    "text": "Encoding captions",
    "train": "Training",
    "samples": "Drawing samples",
    "grid": "Drawing the grid",
    "evaluate": "Measuring",
}
"""What a phase is called in the terminal and on the page."""


@dataclass(frozen=True)
class PhaseStarted:
    """A phase began; `total` is its number of units (images, steps, samples), 0 if unknown."""

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
    """The plan's numbers, before anything heavy starts."""

    images: int
    regularisation_images: int
    steps_per_epoch: int
    epochs: int
    total_steps: int


@dataclass(frozen=True)
class Workload:
    """What each step processes; with the measured seconds per step it predicts the duration of later runs.

    `family` is the model's architecture (sd1, sd2, sdxl), `device` the card's name, `pixels_per_step` the mean over
    all images of a step, `adapter` the LoRA's family and targets.
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

    `learning_rates` are the effective ones: d·lr for the adaptive optimisers. `norms`, if max norm is
    on: the number of layers scaled down, then the mean and the largest norm after scaling.
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
    """All steps of `epoch` (1-based) are done; `mean_loss` is over these steps."""

    epoch: int
    step: int
    mean_loss: float


@dataclass(frozen=True)
class LoraWritten:
    """A LoRA file was written to `path`."""

    path: str
    epoch: int
    step: int


@dataclass(frozen=True)
class LoraRemoved:
    """A LoRA file of this run was deleted, as only the latest ones are kept."""

    path: str


@dataclass(frozen=True)
class StateSaved:
    """A training state was saved: the run can be resumed exactly after `step` from `path`."""

    path: str
    step: int


@dataclass(frozen=True)
class Resumed:
    """The run was resumed after `step`; earlier events of later steps are void."""

    step: int


@dataclass(frozen=True)
class SampleDrawn:
    """A sample image was saved to `path`; `epoch` 0 is without LoRA, `step` 0 is the end of the epoch."""

    path: str
    epoch: int
    prompt: str
    seed: int
    step: int = 0


@dataclass(frozen=True)
class GridDrawn:
    """The epochs × prompts grid was saved to `path`."""

    path: str


VALIDATION_LOSS = "validation_loss"
"""Key in `Measured.values`: the loss on the validation images."""


@dataclass(frozen=True)
class Measured:
    """Metrics of one epoch (0: without LoRA), by name."""

    epoch: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Noted:
    """A warning or hint during the run, which continues. `where` is a file or a setting."""

    level: Literal["warning", "hint"]
    where: str
    message: str


@dataclass(frozen=True)
class StateChanged:
    """The state of the whole run changed."""

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

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in typing.get_args(Event)}


def to_record(event: Event) -> dict[str, Any]:
    """The event as a JSON-ready dict, with its class name under `kind`."""
    return {"kind": type(event).__name__, **dataclasses.asdict(event)}


def from_record(record: Mapping[str, Any]) -> Event:
    """The event from a `to_record` dict. KeyError for an unknown kind, TypeError for wrong fields."""
    values = dict(record)
    return _KINDS[values.pop("kind")](**values)
