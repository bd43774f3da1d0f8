"""What each tag of a dataset became in a LoRA, from measured numbers to sentences. Does not import PyTorch.

The trigger was drawn alone, with each tag, and with words that mean nothing, always with the same seeds. For each image
two numbers are known.

- Its *position* between the training images that lack a tag (0) and those that have it (1): `tag_contrast.py`.
- The *effect* of the word: how much it changed the image, in features and colours, as a share of how much two seeds
  differ.

A word that means nothing changes an image too, and it moves it towards what the LoRA draws by default. It is the floor:
a tag counts only for what it does beyond that.

- *Learnt*: with the tag, images are nearer to those that have it than without it and than with a word without meaning.
- *Ignored*: with the tag they are no nearer than without, and it changes no more than a word without meaning.
- *Steals from the trigger*: at least half of the trigger's captions have the tag, it was learnt, and the trigger alone
  shows little of what those images show. Guides call it the navel case: the tag's absence has gained a meaning.
- *Pulls along*: the tag brings what another one stands for that it often appears with.

Gains are compared seed by seed: what counts is at least `LEAST_GAIN`, and `LEAST_CERTAINTY` standard errors above 0.

Limits: the trigger alone is an unusual prompt for a LoRA whose captions are all long. A tag that the model has
always known counts as learnt. Tags that are always in the same captions cannot be kept apart. What one tag does may
depend on the others in the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from lib_lora_train.core.wording import count

Verdict = Literal["learnt", "ignored", "unclear", "rare"]
Values = tuple[float, ...]

LEAST_GAIN = 0.05
"""Of the distance between the images without the tag and those with it."""
LEAST_CERTAINTY = 3.0
MIN_IMAGES = 2
"""Of a tag and without it: fewer show nothing that they have in common."""
MIN_THEFT_SHARE = 0.5
"""Of the trigger's captions: a tag that is in fewer ones is a choice."""

_VISIBLE = 1.5  # deviations between the images with a tag and those without; tags at random have up to 1
_MISSING = 0.5  # the trigger alone shows less than that of a tag which steals from it
_TOGETHER = 0.5  # of the tag's images have the other one too
_LIFT = 1.5  # times as often as all images
_PULLED = 1 / 3  # of what the other tag does itself


@dataclass(frozen=True)
class TagPull:
    """Another tag, how many images have `both`, and its positions, which the images of the first tag do not affect.

    `pulled`: with the first tag; `own`: with the other one itself; `without`: of the trigger alone; `nonsense`: with
    a word without meaning.
    """

    tag: str
    both: int
    images: int
    separation: float
    without: Values
    nonsense: Values
    own: Values
    pulled: Values


@dataclass(frozen=True)
class TagMeasure:
    """What is known of a tag: it is in `images` of the `total` captions of the trigger.

    The values, one for each seed, are empty if it was not drawn. `separation` says how well the images with the tag can
    be separated from those without; `without`, `nonsense` and `having` are positions, of the trigger alone, with a
    word without meaning, and with the tag. `effect` is the tag's, `floor` that of the word without meaning.
    """

    trigger: str
    tag: str
    prompt: str
    images: int
    total: int
    separation: float = 0.0
    without: Values = ()
    nonsense: Values = ()
    having: Values = ()
    effect: Values = ()
    floor: Values = ()
    pulls: tuple[TagPull, ...] = ()

    @property
    def share(self) -> float:
        """Of the trigger's captions."""
        return self.images / self.total


@dataclass(frozen=True)
class RatedTag:
    """A tag, what became of it, and why, as sentences; `pulls` names the tags that it brings along.

    `advice` says what to do, "" if there is nothing to do.
    """

    measure: TagMeasure
    verdict: Verdict
    steals: bool
    pulls: tuple[str, ...]
    sentence: str
    advice: str

    @property
    def stands_out(self) -> bool:
        """Whether there is something to look at."""
        return self.steals or bool(self.pulls) or self.verdict == "ignored"


def rate_tags(measures: Sequence[TagMeasure]) -> tuple[RatedTag, ...]:
    """The tags with what became of them: thieves first, then those that pull others along, then ignored ones."""
    rated = [_rate(one) for one in measures]
    order = {"ignored": 0, "unclear": 1, "learnt": 2, "rare": 3}
    return tuple(
        sorted(rated, key=lambda one: (not one.steals, not one.pulls, order[one.verdict], -one.measure.images))
    )


def _rate(measure: TagMeasure) -> RatedTag:
    verdict = _verdict(measure)
    steals = verdict == "learnt" and _steals(measure)
    pulls = tuple(pull.tag for pull in measure.pulls if _pulls(measure, pull))
    return RatedTag(
        measure=measure,
        verdict=verdict,
        steals=steals,
        pulls=pulls,
        sentence=_sentence(measure, verdict, steals=steals, pulls=pulls),
        advice=_advice(measure, verdict, steals=steals, pulls=pulls),
    )


# --- rules ----------------------------------------------------------------------------------------


def _verdict(measure: TagMeasure) -> Verdict:
    if not measure.having:
        return "rare"
    is_nearer = measure.separation >= _VISIBLE and _is_gain(measure.having, measure.without)
    if is_nearer:
        return "learnt" if _is_gain(measure.having, measure.nonsense) else "unclear"
    return "unclear" if _is_gain(measure.effect, measure.floor) else "ignored"


def _steals(measure: TagMeasure) -> bool:
    return measure.share >= MIN_THEFT_SHARE and fmean(measure.without) < _MISSING


def _pulls(measure: TagMeasure, pull: TagPull) -> bool:
    if not may_pull(pull.both, measure.images, pull.images, measure.total) or pull.separation < _VISIBLE:
        return False
    if not (_is_gain(pull.pulled, pull.without) and _is_gain(pull.pulled, pull.nonsense)):
        return False
    floor = max(fmean(pull.without), fmean(pull.nonsense))
    return fmean(pull.pulled) - floor >= _PULLED * (fmean(pull.own) - floor)


def may_pull(both: int, images: int, others: int, total: int) -> bool:
    """Whether tags of `images` and `others` images, of which `both` have both, occur together more than by chance."""
    return both >= MIN_IMAGES and both >= _TOGETHER * images and both * total >= _LIFT * images * others


def _is_gain(after: Values, before: Values) -> bool:
    """Whether values are larger than those of the same seeds, by enough and not by chance."""
    gains = [one - other for one, other in zip(after, before, strict=True)]
    error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return fmean(gains) >= LEAST_GAIN and fmean(gains) >= LEAST_CERTAINTY * error


# --- sentences ------------------------------------------------------------------------------------


def _sentence(measure: TagMeasure, verdict: Verdict, *, steals: bool, pulls: Sequence[str]) -> str:
    if verdict == "rare":
        return "Not drawn."
    alone, having = _percent(measure.without), _percent(measure.having)
    effect, floor = (f"{100 * fmean(values):.0f}%" for values in (measure.effect, measure.floor))
    if steals:
        name = measure.trigger or "An empty prompt"
        shown = f"{name} alone shows {alone} of what this tag stands for, with the tag it is {having}."
    elif verdict == "learnt":
        shown = f"Learnt: what it stands for goes from {alone} to {having}."
    elif verdict == "ignored":
        shown = f"Ignored: it changes images by {effect} of what another seed does, a word without meaning by {floor}."
    elif measure.images < MIN_IMAGES:
        shown = "Unclear: it changes images, but one image is too few to say whether it is what that image shows."
    elif _is_gain(measure.having, measure.without):
        shown = "Unclear: it brings what its images show, but so does a word without meaning."
    else:
        shown = "Unclear: it changes images, but not towards those that have it."
    brings = [
        f"It brings {pull.tag} along, which {pull.both} of its {count(measure.images, 'image')} have too."
        for pull in measure.pulls
        if pull.tag in pulls
    ]
    return " ".join((shown, *brings))


def _advice(measure: TagMeasure, verdict: Verdict, *, steals: bool, pulls: Sequence[str]) -> str:
    parts = []
    if steals:
        owner = measure.trigger or "the concept"
        parts.append(f"If it belongs to {owner}, leave the tag out and train again; if it is a choice, prompt for it.")
    if pulls:
        parts.append("Add images that have one without the other, or use one tag for both.")
    if verdict == "ignored":
        parts.append("Do its images show it? If they do, train longer or add images; if not, leave the tag out.")
    return " ".join(parts)


def _percent(values: Values) -> str:
    return f"{100 * min(1.0, max(0.0, fmean(values))):.0f}%"
