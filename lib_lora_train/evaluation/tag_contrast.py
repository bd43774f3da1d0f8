"""What the images with a tag have that the others lack, and how much of it a drawn image has.

An image is compared with the nearest of the images that have the tag and of those that lack it, in three ways: by what
stands out in the loaded UNet's features (`features.py`), by its colours (`palette.py`), and as a whole, in small. How
well each way separates the two groups of training images, every image compared with the others, is its weight: a tag
of a background is seen in the whole, a tag of a thing in the features. The weighted sum of the differences is the
*position*: 0 is where the images without the tag are, 1 where those with it are.

Limits: images that have another thing in common beside the tag, such as those of one session, are separated by
that as well. With two or three images of a tag nothing is certain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean

import numpy as np
import numpy.typing as npt

from lib_lora_train.dataset.concept_tags import ConceptTags
from lib_lora_train.evaluation.features import similarity
from lib_lora_train.evaluation.palette import palette_similarity
from lib_lora_train.evaluation.sample_scale import Look
from lib_lora_train.evaluation.tag_report import MIN_IMAGES, TagMeasure, TagPull, Values, may_pull

_NEAREST = 3  # images of each group; one alone may be a chance hit
_LEAST_DEVIATION = 1e-3

_Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RowLooks:
    """The drawn images of a concept, one for each seed: its trigger alone, with each nonsense word, and with tags.

    `untrained`: the trigger alone without LoRA, which stands for images without a tag where there are none.
    """

    alone: Sequence[Look]
    nonsense: Sequence[Sequence[Look]]
    tags: Mapping[str, Sequence[Look]]
    untrained: Sequence[Look] = ()


def measure_concept(concept: ConceptTags, training: Mapping[int, Look], rows: RowLooks) -> list[TagMeasure]:
    """What is known of every tag of a concept. `training` has the images to compare with, by item."""
    effects, known = _Effects(rows), Similarities()
    return [
        _measure(concept, tag, _Compared(training, rows, known), effects)
        if tag in rows.tags
        else TagMeasure(concept.trigger, tag, concept.prompt(tag), len(items), len(concept.items))
        for tag, items in concept.tags.items()
    ]


@dataclass(frozen=True)
class _Compared:
    """The training images by item, the drawn ones, and how alike those are that were compared."""

    training: Mapping[int, Look]
    rows: RowLooks
    known: Similarities

    def contrast(self, having: Set[int], lacking: Set[int]) -> TagContrast | None:
        """Between two groups of items; None if one of them has too few images."""
        own = [look for item, look in self.training.items() if item in having]
        other = [look for item, look in self.training.items() if item in lacking]
        other = other if len(other) >= MIN_IMAGES else list(self.rows.untrained)
        return TagContrast(own, other, self.known) if min(len(own), len(other)) >= MIN_IMAGES else None


def _measure(concept: ConceptTags, tag: str, compared: _Compared, effects: _Effects) -> TagMeasure:
    items, rows = concept.tags[tag], compared.rows
    contrast = compared.contrast(set(items), set(concept.items) - set(items))
    return TagMeasure(
        trigger=concept.trigger,
        tag=tag,
        prompt=concept.prompt(tag),
        images=len(items),
        total=len(concept.items),
        separation=contrast.separation if contrast else 0.0,
        without=_positions(contrast, rows.alone),
        nonsense=_mean_positions(contrast, rows.nonsense),
        having=_positions(contrast, rows.tags[tag]),
        effect=effects.of(rows.tags[tag]),
        floor=effects.floor,
        pulls=tuple(_pulls(concept, tag, compared)),
    )


def _pulls(concept: ConceptTags, tag: str, compared: _Compared) -> Iterator[TagPull]:
    """The drawn tags that the tag may pull along, since they often occur together."""
    items, everything, rows = set(concept.tags[tag]), set(concept.items), compared.rows
    for other in rows.tags:
        others = set(concept.tags[other])
        if other == tag or not may_pull(len(items & others), len(items), len(others), len(everything)):
            continue
        apart = others - items  # so that the first tag itself does not count
        having = apart if len(apart & compared.training.keys()) >= MIN_IMAGES else others
        contrast = compared.contrast(having, everything - others - items)
        if contrast:
            yield TagPull(
                tag=other,
                both=len(items & others),
                images=len(others),
                separation=contrast.separation,
                without=_positions(contrast, rows.alone),
                nonsense=_mean_positions(contrast, rows.nonsense),
                own=_positions(contrast, rows.tags[other]),
                pulled=_positions(contrast, rows.tags[tag]),
            )


def _positions(contrast: TagContrast | None, looks: Sequence[Look]) -> Values:
    return tuple(contrast.position(look) if contrast else 0.0 for look in looks)


def _mean_positions(contrast: TagContrast | None, rows: Sequence[Sequence[Look]]) -> Values:
    """Of each seed, the mean of all rows."""
    return tuple(map(fmean, zip(*(_positions(contrast, row) for row in rows), strict=True)))


class _Effects:
    """How much words change the images of the trigger alone, as a share of how much its seeds differ."""

    def __init__(self, rows: RowLooks) -> None:
        self._alone = rows.alone
        differences = [_difference(*pair) for pair in combinations(rows.alone, 2)]
        self._one = np.maximum(np.array(differences or [(1.0, 1.0)]).mean(0), _LEAST_DEVIATION)
        self.floor: Values = tuple(map(fmean, zip(*map(self.of, rows.nonsense), strict=True)))
        """The effect of a word without meaning, of each seed."""

    def of(self, row: Sequence[Look]) -> Values:
        """The effect of a word, of each seed."""
        pairs = zip(row, self._alone, strict=True)
        return tuple(float((np.array(_difference(*pair)) / self._one).mean()) for pair in pairs)


def _difference(first: Look, second: Look) -> tuple[float, float]:
    """In features, and in the colours of the whole."""
    return 1 - similarity(first.features, second.features), _distance(first, second)


@dataclass(eq=False)
class TagContrast:
    """Two groups of at least two images each: those that have the tag, and those that lack it."""

    having: Sequence[Look]
    lacking: Sequence[Look]
    known: Similarities = field(default_factory=lambda: Similarities())

    def __post_init__(self) -> None:
        own = np.array([self._differences(look) for look in self.having])  # (images, ways)
        other = np.array([self._differences(look) for look in self.lacking])
        self._middle = other.mean(0)
        apart = own.mean(0) - self._middle
        deviation = np.sqrt((own.var(0, ddof=1) + other.var(0, ddof=1)) / 2) + _LEAST_DEVIATION
        self._weights = np.maximum(apart, 0) / deviation**2
        self._one = float((self._weights * apart).sum())
        self.separation = float(np.sqrt(np.sum(np.maximum(apart, 0) ** 2 / deviation**2)))
        """How far the groups are apart, in units of their deviation; 0 if nothing separates them."""

    def position(self, look: Look) -> float:
        """0: like the images that lack the tag; 1: like those that have it; it may be outside."""
        if not self._one:
            return 0.0
        return float((self._weights * (self._differences(look) - self._middle)).sum()) / self._one

    def _differences(self, look: Look) -> _Numbers:
        """How much more alike the image is to those with the tag, in each way; it is never compared with itself."""
        return self._alike(look, self.having) - self._alike(look, self.lacking)

    def _alike(self, look: Look, others: Sequence[Look]) -> _Numbers:
        """How alike the image is to its nearest others, in each way."""
        rows = np.array([self.known.of(look, other) for other in others if other is not look])
        nearest: _Numbers = np.sort(rows, axis=0)[-_NEAREST:].mean(0)
        return nearest


class Similarities:
    """How alike two images are in each way, computed once for each pair."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[Look, Look], tuple[float, float, float]] = {}

    def of(self, first: Look, second: Look) -> tuple[float, float, float]:
        """By what stands out in their features, by its colours, and as a whole."""
        found = self._pairs.get((first, second)) or self._pairs.get((second, first))
        if found is None:
            found = self._pairs[first, second] = (
                similarity(first.features, second.features),
                palette_similarity(first.palette, second.palette),
                -_distance(first, second),
            )
        return found


def _distance(first: Look, second: Look) -> float:
    """The root mean square difference of the colours, in small."""
    return float(np.sqrt(np.mean((first.thumbnail - second.thumbnail) ** 2)))
