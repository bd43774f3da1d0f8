"""Progress events of a run, as frozen values in the order they happened.

The training loop and the steps around it *yield* them. The trainer appends them to the run's log; the page, the
command line and TensorBoard all show the same events. `to_record` and `from_record` convert to and from JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lib_lora_train.core.errors import Offer
from lib_lora_train.core.phases import Phase
from lib_lora_train.core.wording import without_name


@dataclass(frozen=True)
class PhaseStarted:
    """A phase began; `total` is its number of units (images, steps, samples), 0 if unknown."""

    phase: Phase
    total: int = 0


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of a phase are finished.

    Units may have steps themselves: `step` of `steps` of the next `at_once` units is done, 0 if they have none.
    """

    phase: Phase
    done: int
    total: int
    at_once: int = 0
    step: int = 0
    steps: int = 0

    @property
    def units_done(self) -> float:
        """The finished units, with the share of those in progress."""
        return self.done + (self.at_once * self.step / self.steps if self.steps else 0)

    @property
    def text(self) -> str:
        """`sample 2 of 4, step 7 of 20`, "" if the units have no steps."""
        if not self.steps:
            return ""
        first, last = self.done + 1, self.done + self.at_once
        units = f"sample {first}" if first == last else f"samples {first} to {last}"
        return f"{units} of {self.total}, step {self.step} of {self.steps}"


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
    the steps of all pixels that the UNet sees with gradients, passes without them counted half, `adapter` the LoRA's
    family and targets.
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
class SamplesStarted:
    """`count` samples are being made for an epoch, or for a `step` within it; what is missing is made on resuming."""

    epoch: int
    step: int
    count: int


@dataclass(frozen=True)
class SampleDrawn:
    """A sample image was saved to `path`; `epoch` 0 is without LoRA, `step` 0 is the end of the epoch.

    `is_control`: the LoRA must not change it.
    """

    path: str
    epoch: int
    prompt: str
    seed: int
    step: int = 0
    is_control: bool = False


@dataclass(frozen=True)
class GridDrawn:
    """The epochs × prompts grid was saved to `path`."""

    path: str


@dataclass(frozen=True)
class Measured:
    """Metrics of one epoch (0: without LoRA), by name; `measures.MEASURES` says what they are."""

    epoch: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class ImageLosses:
    """The steady loss of some training images after an epoch (0: without LoRA), by path."""

    epoch: int
    losses: Mapping[str, float]


@dataclass(frozen=True)
class SampleMatched:
    """The training image that a sample of an epoch is most like, both by path; `similarity` is at most 1.

    `is_copy`: the sample is nearly equal to it.
    """

    epoch: int
    sample: str
    image: str
    similarity: float
    is_copy: bool


@dataclass(frozen=True)
class StrengthTested:
    """An epoch was drawn at a strength, to `images` (none: its samples), and measured; other fields as in `Trial`."""

    epoch: int
    strength: float
    likeness: tuple[float, ...]
    change: tuple[float, ...]
    roughness: float
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advised:
    """The epoch of the run to use and its strength, or epoch 0 if none is good, each reason and remedy a sentence.

    `is_sure` is False if others may be as good.
    """

    epoch: int
    strength: float
    is_sure: bool
    reasons: tuple[str, ...]
    remedies: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """`Use epoch 4 at strength 1.`"""
        if not self.epoch:
            return "No epoch of this run is good."
        return f"Use epoch {self.epoch} at strength {self.strength:g}."


@dataclass(frozen=True)
class ImagesRated:
    """The losses of all `total` training images were measured after an epoch (0: with a file that belongs to none).

    `standing_out`: a sentence on each image that stands out, by path.
    """

    epoch: int
    total: int
    standing_out: Mapping[str, str]


@dataclass(frozen=True)
class TagsRated:
    """All `total` tags were measured after an epoch (0: with a file that belongs to none).

    `verdicts`: how many tags have each verdict. `standing_out`: a sentence on each tag that stands out.
    """

    epoch: int
    total: int
    verdicts: Mapping[str, int]
    standing_out: Mapping[str, str]


@dataclass(frozen=True)
class Noted:
    """A warning or hint during the run, which continues. `where` is a file or a setting; the message lacks its name."""

    level: Literal["warning", "hint"]
    where: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", without_name(self.message, self.where))


@dataclass(frozen=True)
class StateChanged:
    """The state of the whole run changed; `offer` is what can be done about it at the press of a button."""

    state: Literal["queued", "running", "paused", "waiting", "stopping", "stopped", "finished", "failed"]
    message: str = ""
    offer: Offer = ""


ACTIVE_STATES = ("running", "paused", "waiting", "stopping")
"""The states of a run that holds the trainer."""

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
    | SamplesStarted
    | SampleDrawn
    | GridDrawn
    | Measured
    | ImageLosses
    | SampleMatched
    | StrengthTested
    | Advised
    | ImagesRated
    | TagsRated
    | Noted
    | StateChanged
)

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in typing.get_args(Event)}


def to_record(event: Event) -> dict[str, Any]:
    """The event as a JSON-ready dict, with its class name under `kind`."""
    return {"kind": type(event).__name__, **dataclasses.asdict(event)}


def from_record(record: Mapping[str, Any]) -> Event:
    """The event from a `to_record` dict without its unknown fields. KeyError for an unknown kind, TypeError for a
    missing field.
    """
    fields, _ = _fields_of(record["kind"])
    values = {field.name: record[field.name] for field in fields if field.name in record}  # JSON has no tuples
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return _KINDS[record["kind"]](**{**values, **tuples})


def fits(record: Mapping[str, Any]) -> bool:
    """Whether the record has every field of its event, each with the right type.

    Unknown fields are allowed: another version may know more.
    """
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        return False
    fields, hints = _fields_of(kind)
    return all(
        _is_a(record[field.name], hints[field.name]) if field.name in record else _has_default(field)
        for field in fields
    )


@functools.cache
def _fields_of(kind: str) -> tuple[tuple[dataclasses.Field[Any], ...], dict[str, Any]]:
    return dataclasses.fields(_KINDS[kind]), typing.get_type_hints(_KINDS[kind])


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the type of a field, as far as JSON can say."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin is Mapping:
        return isinstance(value, dict) and all(_is_a(one, arguments[1]) for one in value.values())
    if origin is tuple:
        kinds = itertools.repeat(arguments[0]) if arguments[-1] is ... else arguments
        is_whole = arguments[-1] is ... or (isinstance(value, (list, tuple)) and len(value) == len(arguments))
        return isinstance(value, (list, tuple)) and is_whole and all(map(_is_a, value, kinds))
    if arguments:  # a union
        return any(_is_a(value, argument) for argument in arguments)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, hint)
