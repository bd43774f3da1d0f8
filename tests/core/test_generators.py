"""What a generator returns is kept while what it yields is used."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from lib_lora_train.core.generators import WithResult, result_of


def _count(end: int, closed: list[bool]) -> Generator[int, None, str]:
    try:
        yield from range(end)
    finally:
        closed.append(True)
    return f"{end} numbers"


@pytest.mark.parametrize("end", [0, 3])
def test_the_result_is_there_after_everything_that_was_yielded(end: int) -> None:
    numbers = WithResult(_count(end, []))
    assert list(numbers) == list(range(end)) and numbers.result == f"{end} numbers"
    assert result_of(_count(end, [])) == f"{end} numbers"


def test_an_error_passes_through_and_there_is_no_result() -> None:
    def fails() -> Generator[int, None, str]:
        yield 1
        raise ValueError("broken")

    numbers, found = WithResult(fails()), list[int]()
    with pytest.raises(ValueError, match="broken"):
        for number in numbers:
            found.append(number)
    assert found == [1] and not hasattr(numbers, "result")


def test_a_generator_whose_loop_ends_early_is_closed() -> None:
    closed: list[bool] = []
    for _ in WithResult(_count(3, closed)):
        break
    assert closed == [True]
