"""Images that look alike: a compute_fingerprint per image, and groups of those whose fingerprints nearly agree.

The compute_fingerprint is a difference hash (Krawetz 2013, "Kind of like that"), along rows and columns, of the image at
8 × 8, with its colours at 4 × 4: hashes alone take flat images for one another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

_SIDE = 8
_COLOUR_SIDE = 4
_BITS = 2 * _SIDE * _SIDE
MAX_DIFFERENT_BITS = 10
"""Of 128."""
_MOST_COLOUR_DIFFERENCE = 10.0  # of 255, on average
_ENOUGH = 64  # px of a side, before cells are averaged
_BLOCK = 64  # rows of pairs compared at once: 5,000 images take 1.3 MB


@dataclass(frozen=True)
class Fingerprint:
    """`bits` (128) say where brightness rises along rows and columns; `colours` are 4 × 4 × RGB."""

    bits: int
    colours: bytes


def compute_fingerprint(image: Image.Image) -> Fingerprint:
    """The compute_fingerprint of an RGB image; resized and re-compressed copies differ by a few bits at most."""
    small = image.reduce((max(1, image.width // _ENOUGH), max(1, image.height // _ENOUGH)))
    grey = small.resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX).convert("L").tobytes()
    side = _SIDE + 1
    places = [row * side + column for row in range(_SIDE) for column in range(_SIDE)]
    along_rows = (grey[place + 1] > grey[place] for place in places)
    along_columns = (grey[place + side] > grey[place] for place in places)
    bits = 0
    for bit in (*along_rows, *along_columns):
        bits = bits << 1 | bit
    return Fingerprint(bits, small.resize((_COLOUR_SIDE, _COLOUR_SIDE), Image.Resampling.BOX).tobytes())


def is_similar(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two images look the same at a glance."""
    if (one.bits ^ other.bits).bit_count() > MAX_DIFFERENT_BITS:
        return False
    difference = sum(abs(a - b) for a, b in zip(one.colours, other.colours, strict=True))
    return difference <= _MOST_COLOUR_DIFFERENCE * len(one.colours)


def group_similar(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of at least two numbers of images that look alike, directly or by way of others, in order."""
    group = list(range(len(fingerprints)))

    def leader(number: int) -> int:
        while group[number] != number:
            group[number] = number = group[group[number]]
        return number

    for one, other in _alike_pairs(fingerprints):
        first, second = sorted((leader(one), leader(other)))
        group[second] = first
    members: dict[int, list[int]] = {}
    for number in range(len(fingerprints)):
        members.setdefault(leader(number), []).append(number)
    return [numbers for numbers in members.values() if len(numbers) > 1]


def _alike_pairs(fingerprints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Every pair that `is_similar`; of equal fingerprints only the first is compared with others.

    All pairs are compared at once, a block of rows at a time: with bits as ±1, the product of two fingerprints is 128
    less twice the bits in which they differ, which is exact in float32.
    """
    first: dict[Fingerprint, int] = {}
    for number, one in enumerate(fingerprints):
        if first.setdefault(one, number) != number:
            yield first[one], number
    numbers = np.fromiter(first.values(), dtype=np.int64)
    packed = b"".join(one.bits.to_bytes(_BITS // 8, "big") for one in first)
    signs = 2 * np.unpackbits(np.frombuffer(packed, np.uint8).reshape(-1, _BITS // 8), axis=1).astype(np.float32) - 1
    colours = np.frombuffer(b"".join(one.colours for one in first), np.uint8).reshape(len(first), -1).astype(np.int16)
    for start in range(0, len(first), _BLOCK):
        near = signs[start : start + _BLOCK] @ signs[start:].T >= _BITS - 2 * MAX_DIFFERENT_BITS
        rows, columns = np.nonzero(np.triu(near, 1))
        difference = np.abs(colours[start + rows] - colours[start + columns]).sum(axis=1)
        alike = difference <= _MOST_COLOUR_DIFFERENCE * colours.shape[1]
        yield from zip(numbers[start + rows[alike]].tolist(), numbers[start + columns[alike]].tolist(), strict=True)
