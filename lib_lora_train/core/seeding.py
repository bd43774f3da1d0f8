"""Counter-based randomness: every draw is a function of (seed, purpose, counters), never of earlier draws.

A run that was paused, resumed or drew samples in between therefore sees the same noise, timesteps, shuffles and
dropouts, bit for bit, with any number of workers.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any

_BITS = 63  # torch.Generator.manual_seed accepts non-negative 63-bit integers on every version


def seed_for(seed: int, purpose: str, *counters: int) -> int:
    """A seed in [0, 2**63) that depends on all arguments and on nothing else."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _BITS)


def random_for(seed: int, purpose: str, *counters: int) -> random.Random:
    """A `random.Random` for one purpose and one set of counters."""
    return random.Random(seed_for(seed, purpose, *counters))


_SHUFFLED_AT_ONCE = 100_000  # about 50 ms


def shuffle(values: list[Any], generator: random.Random, is_stopped: Callable[[], bool]) -> None:
    """`generator.shuffle(values)`, but ends in between, with the list half shuffled, once `is_stopped` returns True."""
    if len(values) <= _SHUFFLED_AT_ONCE:
        generator.shuffle(values)
        return
    for place in range(len(values) - 1, 0, -1):
        if place % _SHUFFLED_AT_ONCE == 0 and is_stopped():
            return
        other = generator.randrange(place + 1)
        values[place], values[other] = values[other], values[place]
