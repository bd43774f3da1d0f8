"""When the next training state is due by time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS = 50.0  # with the rest of a turn, less than a minute
_MAX_SHARE = 0.01  # of the training's time


class StateClock:
    """Measures how long states take to save, and when the next one is due."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._cost = 0.0

    def is_due(self) -> bool:
        """Whether the last state is nearly a minute old, and saving one takes at most 1% of the time since then."""
        return self._clock() - self._last >= max(_SECONDS, self._cost / _MAX_SHARE)

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Inside, a state is saved; the next one is due some time after it, also if it fails."""
        began = self._clock()
        try:
            yield
        finally:
            self._last = self._clock()
            self._cost = self._last - began
