"""Fair shares in whole numbers: of showings to concepts and regularisation images, and of samples to buckets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """`total` in whole shares proportional to positive `weights`, each at least 1 as long as there is enough.

    Largest remainders; of equal claims the earlier one goes first.
    """
    whole = sum(weights)
    numbers = range(len(weights))
    shares = [max(1, total * weight // whole) for weight in weights]

    def claim(number: int) -> int:
        """How much more than its share so far this one is due, times `whole`."""
        return total * weights[number] - shares[number] * whole

    while sum(shares) < total:
        shares[max(numbers, key=lambda n: (claim(n), -n))] += 1
    while sum(shares) > total:
        able = [n for n in numbers if shares[n] > 1] or [n for n in numbers if shares[n] > 0]
        shares[min(able, key=lambda n: (claim(n), -n))] -= 1
    return shares


def draw_systematically(weights: Sequence[int], total: int, generator: random.Random) -> list[int]:
    """How often each of some images is shown when `total` showings are drawn among them.

    Image i gets the whole number below or above its due, total · wᵢ / Σw, and exactly its due on average over
    many draws (systematic sampling in random order, Madow 1949). Integer arithmetic throughout.
    """
    whole = sum(weights)
    order = list(range(len(weights)))
    generator.shuffle(order)
    start = generator.randrange(whole)
    # Showing k stands at start + k·whole on a line on which image i is total·wᵢ long.
    ends = itertools.accumulate(total * weights[number] for number in order)
    counts, before = [0] * len(weights), 0
    for number, end in zip(order, ends, strict=True):
        reached = max(0, -((start - end) // whole))
        counts[number], before = reached - before, reached
    return counts


MIN_SAMPLES_PER_CONCEPT = 100
"""Showings per epoch and concept where the guides' range of 100 to 400 begins."""


def balanced_repeats(image_counts: Sequence[int]) -> list[int]:
    """A number of repeats, 1 or more, for concepts with so many images each.

    Each concept's showings, images × repeats, come as near as whole repeats can to the same number: that of the
    images of the largest concept, and at least `MIN_SAMPLES_PER_CONCEPT`.
    """
    wanted = max(MIN_SAMPLES_PER_CONCEPT, *image_counts)
    return [max(1, (2 * wanted + count) // (2 * count)) for count in image_counts]


def shares(showings: Sequence[int]) -> list[float]:
    """Each concept's part of all showings, 0 to 1."""
    return [shown / sum(showings) for shown in showings]
