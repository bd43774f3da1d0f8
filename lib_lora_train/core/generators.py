"""Generators that yield what happens and return a result: events with what was measured, steps with images."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

_Yielded = TypeVar("_Yielded")
_Result = TypeVar("_Result")


class WithResult(Generic[_Yielded, _Result]):
    """Iterates once over what a generator yields; afterwards `result` is what it returned.

    `result` is not set if the loop ends early.
    """

    result: _Result

    def __init__(self, work: Generator[_Yielded, None, _Result]) -> None:
        self._work = work

    def __iter__(self) -> Iterator[_Yielded]:
        self.result = yield from self._work


def result_of(work: Generator[object, None, _Result]) -> _Result:
    """What a generator returns, without what it yields."""
    everything = WithResult(work)
    for _ in everything:
        pass
    return everything.result
