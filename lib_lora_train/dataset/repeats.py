"""Fair division in whole numbers: repeats of concepts, quotas of buckets, samples of regularisation images."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """`total` divided into whole shares proportional to positive `weights`, each at least 1 if there is enough.

    Largest-remainder method; ties go to the earlier one.
    """
    whole = sum(weights)
    numbers = range(len(weights))
    shares = [max(1, total * weight // whole) for weight in weights]

    def remainder(number: int) -> int:
        """How much this one's exact share exceeds its current share, times `whole`."""
        return total * weights[number] - shares[number] * whole

    while sum(shares) < total:
        shares[max(numbers, key=lambda n: (remainder(n), -n))] += 1
    while sum(shares) > total:
        reducible = [n for n in numbers if shares[n] > 1] or [n for n in numbers if shares[n] > 0]
        shares[min(reducible, key=lambda n: (remainder(n), -n))] -= 1
    return shares


def draw_systematically(weights: Sequence[int], total: int, generator: random.Random) -> list[int]:
    """How often each of several images is drawn in `total` draws (systematic sampling in random order, Madow 1949).

    Image i gets its exact share total · wᵢ / Σw rounded down or up, and exactly that share on average over many calls.
    Integer arithmetic throughout.
    """
    whole = sum(weights)
    order = list(range(len(weights)))
    generator.shuffle(order)
    start = generator.randrange(whole)
    # Draw k is the point start + k·whole on a line on which image i covers a length of total·wᵢ.
    ends = itertools.accumulate(total * weights[number] for number in order)
    counts, before = [0] * len(weights), 0
    for number, end in zip(order, ends, strict=True):
        reached = max(0, -((start - end) // whole))
        counts[number], before = reached - before, reached
    return counts


MIN_SAMPLES_PER_CONCEPT = 100
"""Samples per epoch and concept: the lower end of the 100 to 400 that guides recommend."""


def balanced_repeats(image_counts: Sequence[int]) -> list[int]:
    """The repeats (at least 1) of concepts with these numbers of images.

    Each concept's samples, images × repeats, come as near as possible to one target: the number of images of the
    largest concept, and at least `MIN_SAMPLES_PER_CONCEPT`.
    """
    target = max(MIN_SAMPLES_PER_CONCEPT, *image_counts)
    return [max(1, (2 * target + count) // (2 * count)) for count in image_counts]


def proportions(counts: Sequence[int]) -> list[float]:
    """Each count as a fraction of their sum, 0 to 1."""
    return [count / sum(counts) for count in counts]
