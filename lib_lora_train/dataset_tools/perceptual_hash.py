"""Similar images: a fingerprint per image, and groups of images with nearly the same fingerprint.

The fingerprint is a difference hash (Krawetz 2013, "Kind of like that") along rows and columns at 8 × 8, plus the
colours at 4 × 4, as hashes alone cannot tell flat images apart.
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
"""Of the 128 bits of two fingerprints, to count as similar."""
MAX_COLOUR_DIFFERENCE = 10.0  # of 255, on average
_REDUCED_SIDE = 64  # px, before cells are averaged
_BLOCK = 64  # rows of pairs compared at once: 5,000 images take 1.3 MB


@dataclass(frozen=True)
class Fingerprint:
    """`bits` (128) mark where brightness rises along rows and columns; `colours` are 4 × 4 RGB pixels."""

    bits: int
    colours: bytes


def compute_fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB image; resized and re-compressed copies differ by a few bits at most."""
    small = image.reduce((max(1, image.width // _REDUCED_SIDE), max(1, image.height // _REDUCED_SIDE)))
    grey = small.resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX).convert("L").tobytes()
    side = _SIDE + 1
    cells = [row * side + column for row in range(_SIDE) for column in range(_SIDE)]
    along_rows = (grey[cell + 1] > grey[cell] for cell in cells)
    along_columns = (grey[cell + side] > grey[cell] for cell in cells)
    bits = 0
    for bit in (*along_rows, *along_columns):
        bits = bits << 1 | bit
    return Fingerprint(bits, small.resize((_COLOUR_SIDE, _COLOUR_SIDE), Image.Resampling.BOX).tobytes())


def group_similar(fingerprints: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of at least two indices of similar images, linked directly or through others, in order."""
    parents = list(range(len(fingerprints)))

    def find_root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    for one, other in _similar_pairs(fingerprints) if fingerprints else ():
        first, second = sorted((find_root(one), find_root(other)))
        parents[second] = first
    members: dict[int, list[int]] = {}
    for number in range(len(fingerprints)):
        members.setdefault(find_root(number), []).append(number)
    return [numbers for numbers in members.values() if len(numbers) > 1]


def _similar_pairs(fingerprints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """All pairs that look nearly the same; of equal fingerprints only the first is compared with others.

    Few of their bits differ, and their colours differ little on average.

    Pairs are compared by matrix products, a block of rows at a time: with bits as ±1, the product of two fingerprints
    is 128 minus twice the number of different bits, which is exact in float32.
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
        alike = difference <= MAX_COLOUR_DIFFERENCE * colours.shape[1]
        yield from zip(numbers[start + rows[alike]].tolist(), numbers[start + columns[alike]].tolist(), strict=True)
