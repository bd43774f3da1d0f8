"""Which training images stand out by their loss, and why. Does not import PyTorch.

The loss of an image says little by itself: a detailed image has a high one, a plain one a low one, whatever was learnt.
So each image is compared with itself, in two ways, and what comes of that with the other images of its folder.

- How far its loss *fell*: the logarithm of its loss with LoRA and caption, divided by that of the model alone, without
  either. A loss that stayed where the others fell belongs to an image of something else, or to a wrong caption
  (Swayamdipta et al. 2020, "Dataset Cartography": what stays hard to learn is often mislabelled). The model alone has
  no caption, because a trigger word that it does not know yet misleads it, in some images more than in others.
- What its *caption* is worth: the logarithm of its loss with LoRA and caption, divided by that with the LoRA and an
  empty caption. A caption that describes its image makes the noise easier to predict (Li et al. 2023, "Your Diffusion
  Model is Secretly a Zero-Shot Classifier"), a wrong one does not.

Both become robust z-scores within the folder: the distance from the median, in units of the median distance (Iglewicz
and Hoaglin 1993, "How to Detect and Handle Outliers"). Their sum, divided by √2, is the *score*. The *excess* is how
much higher the loss is than both let expect, as a share.

An image that is nearly another one is trained as often as both together. Its loss hardly shows that, so it is found by
comparing latents (`image_likeness.py`), and comes before all but the most striking losses.

Limits: with few images, or if many are wrong, the others are no measure. An image that is only rare (the one
close-up, the one in another style) stands out as a wrong one does: look before leaving it out. A LoRA that has learnt
every image by heart has learnt the wrong ones too; one that has learnt nothing shows only what the captions are worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean, median
from typing import Literal

Reason = Literal["", "loss", "caption", "twin"]

TWIN_LIKENESS = 0.97
"""Two images that are at least so alike are nearly the same."""
STANDS_OUT = 3.0
"""Scores from here on are worth a look: of normally distributed ones, one in 740 is as high."""

_TWIN_SCORE = 2 * STANDS_OUT  # a duplicate is certain, what a loss means is a guess
_MIN_PEERS = 5  # of its folder, for an image to be compared with them alone
_DEVIATION = 1.4826  # of a normal distribution, in median absolute deviations
_ROUNDED = 0.005  # a share that is shown as 0%
_MIN_DEVIATION = 0.02  # less is within the noise of a loss


@dataclass(frozen=True)
class ImageLoss:
    """What was measured of an image, by its path, at the same timesteps each.

    `trained`: the loss with LoRA and caption, `uncaptioned` with the LoRA alone, `untrained` without both. `group` is
    what the image is compared within, such as its folder; `nearest` are those that are most like it, with how alike.
    """

    path: str
    group: str
    trained: tuple[float, ...]
    uncaptioned: tuple[float, ...]
    untrained: tuple[float, ...]
    nearest: tuple[tuple[str, float], ...] = ()

    @property
    def loss(self) -> float:
        """The mean over the timesteps, as the steady loss is."""
        return fmean(self.trained)


@dataclass(frozen=True)
class RatedImage:
    """An image and how far it stands out.

    `excess` is how much higher its loss is than was to be expected, as a share: 0.5 is half as much again. `score` is
    how far it stands out in units of what is usual among its peers, `reason` by what ("": not at all), `twin` the path
    of the image that is nearly the same. `fell` and `peers_fell`: by how much its loss and that of its peers fell, as
    shares; `caption_worth` and `peers_caption_worth`: by how much the caption lowers them.
    """

    image: ImageLoss
    excess: float
    score: float
    reason: Reason
    twin: str
    fell: float
    peers_fell: float
    caption_worth: float
    peers_caption_worth: float

    @property
    def expected(self) -> float:
        """The loss that was to be expected."""
        return self.image.loss / (1 + self.excess)


def rate_images(images: Sequence[ImageLoss]) -> tuple[RatedImage, ...]:
    """The images, those that stand out most first; of two that are nearly the same only one counts as a duplicate.

    Every loss must be positive. Images of a group with fewer than five are compared with all images; if these are
    fewer, no loss stands out.
    """
    groups: dict[str, list[ImageLoss]] = {}
    for image in images:
        groups.setdefault(image.group, []).append(image)
    twins = _twins(images)
    scales = {name: _Scale.of(peers if len(peers) >= _MIN_PEERS else images) for name, peers in groups.items()}
    rated = [_rate(image, scales[image.group], twins.get(image.path, "")) for image in images]
    return tuple(sorted(rated, key=lambda one: (-one.score, -one.excess, one.image.path)))


def describe_image(rated: RatedImage) -> str:
    """Why the image stands out and what to look for, in one or two sentences; what is usual, if it does not."""
    fell = _compare_changes(-rated.fell, -rated.peers_fell)
    if rated.reason == "loss":
        return f"{fell} Does it show something else than the others, or is its caption wrong?"
    if rated.reason == "caption":
        own, peers = _change(-rated.caption_worth, _RAISES), _change(-rated.peers_caption_worth, _RAISE)
        return f"Its caption {own}, those of the others {peers}. Does the caption describe this image?"
    if rated.reason == "twin":
        name = PurePath(rated.twin.replace("\\", "/")).name
        return f"Nearly the same as {name}, so both together are trained twice as often. {fell}"
    return fell


_ROSE = ("fell by {}", "stayed", "rose by {}")
_RAISES = ("lowers its loss by {}", "does not change its loss", "raises its loss by {}")
_RAISE = ("lower theirs by {}", "do not change theirs", "raise theirs by {}")


def _compare_changes(own: float, peers: float) -> str:
    """`Its loss rose by 2%, the others' fell by 49%.`"""
    first, second = _change(own, _ROSE), _change(peers, _ROSE)
    verb = first.split()[0]
    return f"Its loss {first}, the others' {second.removeprefix(f'{verb} ')}."


def _change(share: float, words: tuple[str, str, str]) -> str:
    """`fell by 12%`; `words` are those for less, the same and more."""
    word = words[1] if abs(share) < _ROUNDED else words[0] if share < 0 else words[2]
    return word.format(f"{100 * abs(share):.0f}%")


@dataclass(frozen=True)
class _Scale:
    """What is usual among the peers: median and deviation of how the loss fell, and of what a caption is worth."""

    fall: float
    fall_deviation: float
    caption: float
    caption_deviation: float

    @classmethod
    def of(cls, peers: Sequence[ImageLoss]) -> _Scale:
        """That of these images; with too few, nothing is unusual."""
        return cls(*_usual([_fall(one) for one in peers]), *_usual([_caption(one) for one in peers]))


def _rate(image: ImageLoss, scale: _Scale, twin: str) -> RatedImage:
    fall = (_fall(image) - scale.fall) / scale.fall_deviation
    caption = (_caption(image) - scale.caption) / scale.caption_deviation
    score = (fall + caption) / math.sqrt(2)
    reason: Reason = "loss" if fall >= caption else "caption"
    if twin and score < _TWIN_SCORE:
        score, reason = _TWIN_SCORE, "twin"
    return RatedImage(
        image=image,
        excess=math.expm1((_fall(image) - scale.fall + _caption(image) - scale.caption) / 2),
        score=score,
        reason=reason if score >= STANDS_OUT else "",
        twin=twin,
        fell=-math.expm1(_fall(image)),
        peers_fell=-math.expm1(scale.fall),
        caption_worth=-math.expm1(_caption(image)),
        peers_caption_worth=-math.expm1(scale.caption),
    )


def _fall(image: ImageLoss) -> float:
    return _mean_log_ratio(image.trained, image.untrained)


def _caption(image: ImageLoss) -> float:
    return _mean_log_ratio(image.trained, image.uncaptioned)


def _mean_log_ratio(losses: Sequence[float], references: Sequence[float]) -> float:
    """The mean over the timesteps, so that each counts alike: losses at little noise are many times larger."""
    return fmean(math.log(loss / reference) for loss, reference in zip(losses, references, strict=True))


def _usual(values: Sequence[float]) -> tuple[float, float]:
    """Median and deviation, both hardly moved by a few values that are far away; of too few, any deviation is usual."""
    middle = median(values)
    if len(values) < _MIN_PEERS:
        return middle, math.inf
    return middle, max(_MIN_DEVIATION, _DEVIATION * median(abs(value - middle) for value in values))


def _twins(images: Sequence[ImageLoss]) -> dict[str, str]:
    """For one image of each pair that is nearly the same, the other; the one that stays is the first by its path."""
    twins = {}
    for image in images:
        others = [path for path, likeness in image.nearest if likeness >= TWIN_LIKENESS and path < image.path]
        if others:
            twins[image.path] = others[0]
    return twins
