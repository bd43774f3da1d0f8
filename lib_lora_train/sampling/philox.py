"""Normal noise as NVIDIA cards draw it, computed anywhere: what the webuis call the noise source "NV".

Philox-4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
How numbers are counted and made normal is cuRAND's and PyTorch's way on a card: element i of the n-th tensor has the
counter (n, 0, i, 0) under the seed as key, and takes the sine of the pair that Box and Muller's transform gives.

Words of 32 bits are held in int64: a product of two wraps around, but all of its 64 bits are right.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and √3 − 1, as parts of 2³²
_ROUNDS = 10
_WORD = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]
"""Four words of 32 bits each, in int64 tensors of one shape."""


class PhiloxNoise:
    """A seed's standard normal numbers, one tensor after another."""

    def __init__(self, seed: int) -> None:
        self._key = (seed & _WORD, seed >> 32 & _WORD)
        self._drawn = 0

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor, float32 on the processor; of up to 2³² numbers."""
        place = torch.arange(math.prod(shape))
        nothing = torch.zeros_like(place)
        words = philox_4x32((torch.full_like(place, self._drawn), nothing, place, nothing), self._key)
        self._drawn += 1
        return box_muller(words[0], words[1]).reshape(shape)


def philox_4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Four random words for each counter, after ten rounds."""
    for number in range(_ROUNDS):
        keys = tuple((word + number * step) & _WORD for word, step in zip(key, _KEY_STEPS, strict=True))
        (high_0, low_0), (high_1, low_1) = (
            _product(counter[place], by) for place, by in zip((0, 2), _MULTIPLIERS, strict=True)
        )
        counter = (high_1 ^ counter[1] ^ keys[0], low_1, high_0 ^ counter[3] ^ keys[1], low_0)
    return counter


def _product(words: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower word of `words`·`by`."""
    product = words * by
    return product >> 32 & _WORD, product & _WORD


def box_muller(x: Tensor, y: Tensor) -> Tensor:
    """One normal number of each pair of words: √(−2·ln u)·sin v, with u in (0, 1) and v in (0, 2π); float32."""
    turn = float(torch.tensor(2 * math.pi, dtype=torch.float32))  # cuRAND's constant has single precision
    u, v = ((word.double() + 0.5) / 2**32 for word in (x, y))
    return ((-2 * u.log()).sqrt() * (v * turn).sin()).float()
