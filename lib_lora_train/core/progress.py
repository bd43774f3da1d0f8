"""Progress and remaining time of a run, computed from its events.

The page and the terminal share it, so that both show the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lib_lora_train.core.events import Event, PhaseEnded, PhaseStarted, Progress, StateChanged

_WINDOW_SECONDS = 30.0  # the speed is measured over the last seconds only, so that it follows a busy machine


@dataclass
class _Phase:
    """A running phase; `marks` are (time, finished units with parts) within the window."""

    name: str
    total: int
    marks: list[tuple[float, float]]
    progress: Progress | None = None

    @property
    def units_done(self) -> float:
        return self.progress.units_done if self.progress else 0


@dataclass
class Eta:
    """The innermost running phase, its progress, and the time it still needs at the current speed.

    Phases can be nested (samples inside training). Time spent in an inner phase or a pause does not slow down the
    outer phase's estimate.
    """

    clock: Callable[[], float] = time.monotonic
    _open: list[_Phase] = field(default_factory=list)

    @property
    def phase(self) -> str:
        """Name of the innermost phase, "" if none is running."""
        return self._open[-1].name if self._open else ""

    @property
    def done(self) -> int:
        """Finished units of the innermost phase."""
        progress = self._open[-1].progress if self._open else None
        return progress.done if progress else 0

    @property
    def text(self) -> str:
        """The innermost phase's progress within its units, as `Progress.text`."""
        progress = self._open[-1].progress if self._open else None
        return progress.text if progress else ""

    @property
    def share(self) -> float:
        """The finished share of the innermost phase, 0 if unknown."""
        return min(1.0, self._open[-1].units_done / self.total) if self.total else 0.0

    @property
    def total(self) -> int:
        """All units of the innermost phase, 0 if unknown."""
        return self._open[-1].total if self._open else 0

    def handle(self, event: Event) -> None:
        """Update the estimate; call it with every event of the run."""
        now = self.clock()
        if isinstance(event, PhaseStarted):
            self._open.append(_Phase(event.phase, event.total, [(now, 0)]))
        elif isinstance(event, Progress):
            self._advance(event, now)
        elif isinstance(event, PhaseEnded):
            self._open = [phase for phase in self._open if phase.name != event.phase]
            self._restart_measurement(now)
        elif isinstance(event, StateChanged):
            self._restart_measurement(now)

    def _advance(self, event: Progress, now: float) -> None:
        phase = next((phase for phase in self._open if phase.name == event.phase), None)
        if phase is None:
            phase = _Phase(event.phase, event.total, [])
            self._open.append(phase)
        phase.progress, phase.total = event, event.total
        phase.marks.append((now, event.units_done))
        recent = [mark for mark in phase.marks if now - mark[0] <= _WINDOW_SECONDS]
        phase.marks = recent if len(recent) >= 2 else phase.marks[-2:]

    def _restart_measurement(self, now: float) -> None:
        """Drop the measurements so far, as a pause or an inner phase came after them."""
        for phase in self._open:
            phase.marks = [(now, phase.units_done)]

    def remaining_seconds(self) -> float | None:
        """Seconds until the innermost phase ends, None if not yet known."""
        marks = self._open[-1].marks if self._open else []
        if len(marks) < 2:
            return None
        (start, first), (end, last) = marks[0], marks[-1]
        if last <= first or end <= start:
            return None
        return (self.total - last) * (end - start) / (last - first)


def format_clock(seconds: float | None) -> str:
    """75 → `1:15`, 3725 → `1:02:05`, None → `–`."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`: rounded as an estimate should be."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes / 5) * 5, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
