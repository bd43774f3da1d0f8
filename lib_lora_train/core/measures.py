"""The measures of an epoch: their names in `Measured.values`, what they are called, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

VALIDATION_LOSS = "validation_loss"
STEADY_LOSS = "steady_loss"
LIKENESS = "likeness"
DIVERSITY = "diversity"
COPIES = "copies"
OBEDIENCE = "obedience"
DRIFT = "drift"
DRIFT_SHARE = "drift_share"
BLEED = "bleed"
TRIGGER_BLEED = "trigger_bleed"


_MODEL = ("checkpoint", "vae")
_IMAGES = (*_MODEL, "folder", "leave_out_images", "resolution", "resolution_height", "resolutions", "use_masks")
_CAPTIONS = ("class_word", "leave_out_tags", "only_class_word", "trigger")
_LOSS = (*_IMAGES, *_CAPTIONS, "prediction_type", "validation_share")
_PROMPTS = (*_MODEL, "class_word", "resolution", "resolution_height", "trigger")


@dataclass(frozen=True)
class MeasureInfo:
    """A measure for the page and the tables: its title, a sentence on how to read it, and what is better ("": neither).

    Runs that differ in one of the settings `tied_to`, of the run or of a concept, are not measured alike. `digits`
    follow the point.
    """

    title: str
    help: str
    better: Literal["lower", "higher", ""]
    tied_to: tuple[str, ...] = _IMAGES
    digits: int = 2


MEASURES = {
    STEADY_LOSS: MeasureInfo(
        "Steady loss",
        "Loss on some training images, with the same noise after every epoch: the training loss without its noise.",
        "lower",
        _LOSS,
        4,
    ),
    VALIDATION_LOSS: MeasureInfo(
        "Validation loss",
        "Loss on images that are not trained on. It rises when the LoRA only memorises.",
        "lower",
        (*_LOSS, "seed"),
        4,
    ),
    LIKENESS: MeasureInfo(
        "Likeness",
        "How much the samples look like the training images: 0 is without LoRA, 1 as much as these look like each "
        "other.",
        "higher",
    ),
    OBEDIENCE: MeasureInfo(
        "Trigger obedience",
        "How much of the effect needs the trigger: 0 if prompts without it change as much, 1 if they do not change.",
        "higher",
        _PROMPTS,
    ),
    DRIFT: MeasureInfo(
        "Drift",
        "How much prompts without the concept change: 0 not at all, 1 as much as leaving out the whole prompt would.",
        "lower",
        _PROMPTS,
    ),
    DRIFT_SHARE: MeasureInfo(
        "Drift as share of effect",
        "How much prompts without the concept change compared with those with it.",
        "lower",
        _PROMPTS,
    ),
    BLEED: MeasureInfo(
        "Bleed",
        "How much of what the trigger does also happens to the class word without it: 0 nothing, 1 all of it.",
        "lower",
        _PROMPTS,
    ),
    TRIGGER_BLEED: MeasureInfo(
        "Bleed between triggers",
        "How much of what one trigger does also happens with another trigger of the run: 0 nothing, 1 all of it.",
        "lower",
        _PROMPTS,
    ),
    COPIES: MeasureInfo(
        "Copies", "The share of the samples that are nearer to a training image than these are to each other.", "lower"
    ),
    DIVERSITY: MeasureInfo(
        "Diversity",
        "How different samples of the trigger are: 1 as different as the training images are, 0 all the same.",
        "higher",
    ),
}
"""By name, in the order of tables."""


def measure_info(name: str) -> MeasureInfo:
    """What is known of a measure; of one that is not ours, its name in words."""
    return MEASURES.get(name) or MeasureInfo(name.replace("_", " ").capitalize(), "", "")


def measure_title(name: str) -> str:
    """What a measure is called."""
    return measure_info(name).title


def sort_measures(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once: ours in the order of tables, then the others by name."""
    found = set(names)
    return (*(name for name in MEASURES if name in found), *sorted(found - MEASURES.keys()))
