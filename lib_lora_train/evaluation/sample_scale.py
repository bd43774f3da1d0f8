"""What samples have of the training images: likeness, copies and diversity.

- *Likeness*: each sample is compared with the training image it is most like; the mean over all training images would
  rate a grey blur highest, since it is a little like each of them. Two numbers of the run itself give the scale. 0 is
  how alike samples without LoRA are, 1 how alike the training images are to each other.
- *Palette likeness*: the same with the colours of what stands out (`palette.py`), which features hardly see.
- *Copies*: the share of the samples that are nearly equal to a training image, and nearer to it than any two training
  images are to each other, duplicates aside, both in features (what is shown) and in pixels (where it is, and on what).
  Features alone would call every good drawing of a mascot a copy, pixels alone every image with something in the same
  place. Few images say little about how alike two of them can be, so both have a fixed bound too. What is right and how
  often: `benchmarks/copies.md`.
- *Diversity*: how different the samples are from each other, as a share of how different the training images are.

When they lie: likeness rises with everything that the samples share with the training images, such as their style or a
background that cannot be cropped away. If all training images are alike, nothing is a copy. Samples of one prompt with
few words are less diverse than those of several. Compare epochs of one run, not runs with other images or prompts.

The features are those of `features.py`: DIFT (Tang et al. 2023), matched by location.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from statistics import fmean

import numpy as np
import numpy.typing as npt
from PIL import Image

from lib_lora_train.evaluation.features import ImageFeatures, nearest, similarity
from lib_lora_train.evaluation.palette import palette, palette_similarity

MAX_IMAGES = 24
"""Training images beyond these would hardly change the numbers and take long."""

_DUPLICATE = 0.985  # the same image in another file format or size is at least so alike
_MIN_RANGE = 0.03  # between 0 and 1 of the scale: less is within the noise of a similarity
_MIN_PALETTE_RANGE = 0.1
_COPY_FEATURES, _COPY_PIXELS = 0.8, 0.86  # beside what the training images say, of which there may be only one or two
_SIDE_PX = 32  # of the thumbnails whose pixels are compared
_SHIFTS = (-2, -1, 0, 1, 2)  # px of a thumbnail, in both directions

Pixels = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Look:
    """What is compared of an image: its features and its thumbnail (3, 32, 32), 0…1."""

    features: ImageFeatures
    thumbnail: Pixels

    @cached_property
    def palette(self) -> Pixels:
        """The colours of what stands out."""
        return palette(self.thumbnail)


@dataclass(frozen=True)
class Match:
    """The training image that a sample is most like, by its number, how alike they are, and whether it is a copy."""

    image: int
    similarity: float
    is_copy: bool


@dataclass(frozen=True)
class CopyRule:
    """How alike a sample has to be to a training image, in features and in pixels, to be a copy of it."""

    features: float
    pixels: float

    def is_copy(self, features: float, pixels: float) -> bool:
        """Whether a sample that is so alike is a copy."""
        return features > self.features and pixels > self.pixels


def copy_rule(pairs: Sequence[tuple[float, float]]) -> CopyRule:
    """The rule of a dataset, from how alike any two of its images are in (features, pixels).

    In features different images of one subject may be as alike as a copy is, so they can only lower that bound. Images
    that are alike in pixels raise the other one: nothing else separates a copy from a new image then.
    """
    different = [pair for pair in pairs if pair[0] < _DUPLICATE]
    return CopyRule(
        features=min(_COPY_FEATURES, max((features for features, _ in different), default=_COPY_FEATURES)),
        pixels=max(_COPY_PIXELS, *(pixels for _, pixels in different), 0.0),
    )


def make_look(image: Image.Image, features: ImageFeatures) -> Look:
    """An RGB image of any size and its features, ready to be compared."""
    small = image.convert("RGB").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    return Look(features, np.asarray(small, dtype=np.float64).transpose(2, 0, 1) / 255)


@dataclass(eq=False)
class SampleScale:
    """The scale of a run, from its training images and its samples without LoRA; at least one of each."""

    training: Sequence[Look]
    without_lora: Sequence[Look]
    _zero: float = field(init=False)
    _one: float = field(init=False)
    _copy_rule: CopyRule = field(init=False)
    _difference: float | None = field(init=False)
    _palette_zero: float = field(init=False)
    _palette_one: float = field(init=False)

    def __post_init__(self) -> None:
        """Compare the training images with each other."""
        pairs = {pair: similarity(*(self.training[n].features for n in pair)) for pair in _pairs(self.training)}
        different = {pair: value for pair, value in pairs.items() if value < _DUPLICATE}
        closest = [
            max((value for pair, value in different.items() if number in pair), default=1.0)
            for number in range(len(self.training))
        ]
        pixels = {pair: pixel_similarity(*(self.training[n].thumbnail for n in pair)) for pair in different}
        self._zero = fmean(self._nearest(look)[1] for look in self.without_lora)
        self._one = fmean(closest)
        self._copy_rule = copy_rule([(different[pair], pixels[pair]) for pair in different])
        self._difference = 1 - fmean(different.values()) if different else None
        self._palette_zero = fmean(map(self._nearest_palette, self.without_lora))
        self._palette_one = fmean(
            max(
                (palette_similarity(*(self.training[n].palette for n in pair)) for pair in different if number in pair),
                default=1.0,
            )
            for number in range(len(self.training))
        )

    @property
    def is_known(self) -> bool:
        """Whether likeness has a scale.

        It has none if the samples without LoRA are already as alike as the training images are: the run then teaches
        nothing that this measure sees.
        """
        return self._one - self._zero >= _MIN_RANGE

    def matches(self, samples: Sequence[Look]) -> list[Match]:
        """Each sample's nearest training image."""
        return [self._match(sample) for sample in samples]

    def likeness(self, matches: Sequence[Match]) -> float:
        """0: as alike as without LoRA; 1: as alike as the training images are to each other; it may be outside."""
        return (fmean(match.similarity for match in matches) - self._zero) / (self._one - self._zero)

    def likeness_of_each(self, samples: Sequence[Look]) -> list[float]:
        """The likeness of each sample in features and palette, each at most 1, or in the one that has a scale.

        [] if neither has.
        """
        zero, one = self._palette_zero, self._palette_one
        scales = []
        if self.is_known:
            scales.append([(self._nearest(look)[1] - self._zero) / (self._one - self._zero) for look in samples])
        if one - zero >= _MIN_PALETTE_RANGE:
            scales.append([(self._nearest_palette(look) - zero) / (one - zero) for look in samples])
        return [fmean(min(value, 1.0) for value in values) for values in zip(*scales, strict=True)]

    def diversity(self, samples: Sequence[Look]) -> float | None:
        """1: as different as the training images; 0: all the same. None for fewer than two samples or images."""
        values = [similarity(*(samples[n].features for n in pair)) for pair in _pairs(samples)]
        return (1 - fmean(values)) / self._difference if values and self._difference else None

    def _match(self, sample: Look) -> Match:
        """The training image that the sample copies, the most alike one of several; else the one it is most like."""
        features = [similarity(sample.features, look.features) for look in self.training]
        pixels = [pixel_similarity(sample.thumbnail, look.thumbnail) for look in self.training]
        numbers = range(len(self.training))
        copied = [number for number in numbers if self._copy_rule.is_copy(features[number], pixels[number])]
        best = max(copied or numbers, key=features.__getitem__)
        return Match(best, features[best], bool(copied))

    def _nearest_palette(self, look: Look) -> float:
        return max(palette_similarity(look.palette, image.palette) for image in self.training)

    def _nearest(self, sample: Look) -> tuple[int, float]:
        return nearest(sample.features, [look.features for look in self.training])


def copies(matches: Sequence[Match]) -> float:
    """The share of the samples that are copies."""
    return fmean(match.is_copy for match in matches)


def pixel_similarity(first: Pixels, second: Pixels) -> float:
    """The best correlation (Pearson) of two thumbnails, shifted by up to two pixels; 0 where one of them is plain.

    Each colour channel is compared with its own mean, so that an equal background alone is worth nothing.
    """
    return max(_correlation(*_overlap(first, second, x, y)) for x in _SHIFTS for y in _SHIFTS)


def _overlap(first: Pixels, second: Pixels, x: int, y: int) -> tuple[Pixels, Pixels]:
    """The parts of both that lie on each other if the second is moved by x and y."""
    height, width = first.shape[1:]
    rows, columns = slice(max(0, y), height + min(0, y)), slice(max(0, x), width + min(0, x))
    back_rows, back_columns = slice(max(0, -y), height + min(0, -y)), slice(max(0, -x), width + min(0, -x))
    return first[:, rows, columns], second[:, back_rows, back_columns]


def _correlation(first: Pixels, second: Pixels) -> float:
    one, other = (part - part.mean(axis=(1, 2), keepdims=True) for part in (first, second))
    length = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / length if length > 0 else 0.0


def _pairs(looks: Sequence[Look]) -> list[tuple[int, int]]:
    return list(combinations(range(len(looks)), 2))
