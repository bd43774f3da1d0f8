"""Pictures that look alike: a fingerprint per picture, and groups of those whose fingerprints nearly agree.

The fingerprint is a difference hash (Krawetz 2013, "Kind of like that"), along rows and columns, of the picture at
8 × 8, with its colours at 4 × 4: hashes alone take flat pictures for one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from PIL import Image

_SIDE = 8
_COLOUR_SIDE = 4
_BITS = 2 * _SIDE * _SIDE
_BAND_BITS = 8
MOST_DIFFERENT_BITS = 10
"""Of 128. Fewer than there are bands of 8 bits, so that alike pictures agree in one band at least."""
_MOST_COLOUR_DIFFERENCE = 10.0  # of 255, on average


@dataclass(frozen=True)
class Fingerprint:
    """`bits` (128) say where brightness rises along rows and columns; `colours` are 4 × 4 × RGB."""

    bits: int
    colours: bytes


def fingerprint(picture: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB picture; resized and re-compressed copies differ by a few bits at most."""
    small = picture.resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX, reducing_gap=2.0)
    grey = small.convert("L").tobytes()
    side = _SIDE + 1
    places = [row * side + column for row in range(_SIDE) for column in range(_SIDE)]
    along_rows = (grey[place + 1] > grey[place] for place in places)
    along_columns = (grey[place + side] > grey[place] for place in places)
    bits = 0
    for bit in (*along_rows, *along_columns):
        bits = bits << 1 | bit
    return Fingerprint(bits, picture.resize((_COLOUR_SIDE, _COLOUR_SIDE), Image.Resampling.BOX).tobytes())


def is_alike(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two pictures look the same at a glance."""
    if (one.bits ^ other.bits).bit_count() > MOST_DIFFERENT_BITS:
        return False
    difference = sum(abs(a - b) for a, b in zip(one.colours, other.colours, strict=True))
    return difference <= _MOST_COLOUR_DIFFERENCE * len(one.colours)


def alike_groups(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of at least two numbers of pictures that look alike, directly or by way of others, in order."""
    group = list(range(len(fingerprints)))

    def leader(number: int) -> int:
        while group[number] != number:
            group[number] = number = group[group[number]]
        return number

    for one, other in _candidates(fingerprints):
        first, second = sorted((leader(one), leader(other)))
        if first != second and is_alike(fingerprints[one], fingerprints[other]):
            group[second] = first
    members: dict[int, list[int]] = {}
    for number in range(len(fingerprints)):
        members.setdefault(leader(number), []).append(number)
    return [numbers for numbers in members.values() if len(numbers) > 1]


def _candidates(fingerprints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in a band of 8 bits: every pair that differs in fewer bits than there are bands is among them.

    Of equal fingerprints only the first is compared with others.
    """
    first: dict[Fingerprint, int] = {}
    for number, one in enumerate(fingerprints):
        if first.setdefault(one, number) != number:
            yield first[one], number
    for shift in range(0, _BITS, _BAND_BITS):
        buckets: dict[int, list[int]] = {}
        for one, number in first.items():
            buckets.setdefault(one.bits >> shift & (1 << _BAND_BITS) - 1, []).append(number)
        for bucket in buckets.values():
            yield from combinations(bucket, 2)
