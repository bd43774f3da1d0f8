"""Seeds depend on seed, purpose and counters, and on nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.core.seeding import random_for, seed_for

COUNTERS = st.lists(st.integers(0, 10**6), max_size=3)


def test_seeds_never_change_between_versions() -> None:
    """A resumed run must see the noise of the version that started it."""
    assert seed_for(42, "noise", 1, 2) == 6681449149344121227


@given(st.integers(0, 2**53), st.text(max_size=5), COUNTERS)
def test_every_seed_fits_a_torch_generator(seed: int, purpose: str, counters: list[int]) -> None:
    assert 0 <= seed_for(seed, purpose, *counters) < 2**63


def test_seed_purpose_and_each_counter_matter() -> None:
    seeds = {seed_for(1, "a", 1), seed_for(2, "a", 1), seed_for(1, "b", 1), seed_for(1, "a", 2), seed_for(1, "a", 1, 0)}
    assert len(seeds) == 5


def test_a_generator_does_not_depend_on_earlier_draws() -> None:
    first = random_for(1, "a", 3)
    expected = first.random()
    random_for(1, "a", 2).random()
    assert random_for(1, "a", 3).random() == expected != first.random()
