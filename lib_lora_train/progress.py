"""How far a run is and how long it will take, from its events alone.

Shared by the page and the terminal, so that both show the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lib_lora_train.events import Event, PhaseEnded, PhaseStarted, Progress, StateChanged

_MEMORY_SECONDS = 30.0  # the speed is measured over this stretch, so that it follows a busy machine


@dataclass
class Eta:
    """The current phase, what is done of it, and the time it still needs at the present speed."""

    clock: Callable[[], float] = time.monotonic
    phase: str = ""
    done: int = 0
    total: int = 0
    _marks: list[tuple[float, int]] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Learn from one event."""
        if isinstance(event, PhaseStarted):
            self.phase, self.done, self.total = event.phase, 0, event.total
            self._marks = [(self.clock(), 0)]
        elif isinstance(event, Progress):
            self.phase, self.done, self.total = event.phase, event.done, event.total
            self._mark()
        elif isinstance(event, PhaseEnded):
            self._marks = []
        elif isinstance(event, StateChanged):
            self._marks = [(self.clock(), self.done)]  # a pause must not count as slowness

    def _mark(self) -> None:
        now = self.clock()
        self._marks.append((now, self.done))
        recent = [mark for mark in self._marks if now - mark[0] <= _MEMORY_SECONDS]
        self._marks = recent if len(recent) >= 2 else self._marks[-2:]

    def remaining_seconds(self) -> float | None:
        """Seconds until the phase ends, None while nothing can be said."""
        if len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        if last <= first or end <= start:
            return None
        return (self.total - last) * (end - start) / (last - first)


def clock_text(seconds: float | None) -> str:
    """75 → `1:15`, 3725 → `1:02:05`, None → `–`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
