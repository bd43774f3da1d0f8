"""How far a run is and how long it will take, from its events alone.

Shared by the page and the terminal, so that both show the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lib_lora_train.core.events import Event, PhaseEnded, PhaseStarted, Progress, StateChanged

_MEMORY_SECONDS = 30.0  # the speed is measured over this stretch, so that it follows a busy machine


@dataclass
class _Phase:
    """One phase under way, and when it had come how far."""

    name: str
    total: int
    marks: list[tuple[float, int]]
    done: int = 0


@dataclass
class Eta:
    """The innermost phase under way, what is done of it, and the time it still needs at the present speed.

    Phases may lie inside others (samples inside training); the time of an inner one, like that of a pause,
    does not count as slowness of the outer one.
    """

    clock: Callable[[], float] = time.monotonic
    _open: list[_Phase] = field(default_factory=list)

    @property
    def phase(self) -> str:
        """Name of the innermost phase, "" before the first and after the last."""
        return self._open[-1].name if self._open else ""

    @property
    def done(self) -> int:
        """Finished units of the phase."""
        return self._open[-1].done if self._open else 0

    @property
    def total(self) -> int:
        """All units of the phase, 0 if unknown."""
        return self._open[-1].total if self._open else 0

    def take(self, event: Event) -> None:
        """Learn from one event."""
        now = self.clock()
        if isinstance(event, PhaseStarted):
            self._open.append(_Phase(event.phase, event.total, [(now, 0)]))
        elif isinstance(event, Progress):
            self._advance(event, now)
        elif isinstance(event, PhaseEnded):
            self._open = [phase for phase in self._open if phase.name != event.phase]
            self._forget(now)
        elif isinstance(event, StateChanged):
            self._forget(now)

    def _advance(self, event: Progress, now: float) -> None:
        phase = next((phase for phase in self._open if phase.name == event.phase), None)
        if phase is None:
            phase = _Phase(event.phase, event.total, [])
            self._open.append(phase)
        phase.done, phase.total = event.done, event.total
        phase.marks.append((now, event.done))
        recent = [mark for mark in phase.marks if now - mark[0] <= _MEMORY_SECONDS]
        phase.marks = recent if len(recent) >= 2 else phase.marks[-2:]

    def _forget(self, now: float) -> None:
        """Measure anew from here: what lies behind was a pause or another phase."""
        for phase in self._open:
            phase.marks = [(now, phase.done)]

    def remaining_seconds(self) -> float | None:
        """Seconds until the phase ends, None while nothing can be said."""
        marks = self._open[-1].marks if self._open else []
        if len(marks) < 2:
            return None
        (start, first), (end, last) = marks[0], marks[-1]
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


def time_text(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`: as exact as an estimate can be."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes / 5) * 5, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
