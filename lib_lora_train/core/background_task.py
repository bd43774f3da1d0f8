"""Minutes of work in a background thread, with progress, remaining time and a stop signal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from lib_lora_train.core.control import RunStoppedError
from lib_lora_train.core.errors import DataError, LoraTrainError
from lib_lora_train.core.events import PhaseStarted, Progress, StateChanged
from lib_lora_train.core.progress import Eta, format_duration

_QUICK_SECONDS = 0.5  # work that finishes within this needs no progress bar
_UNITS_PER_MEASUREMENT = 20
_CACHED_SECONDS = 2.0  # cached results arrive at once and say nothing about the speed of the rest


class BackgroundTask:
    """Runs one function at a time. Its state is idle, busy, done, stopped or failed.

    `name` is what error messages call it: "tagger".
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._state = "idle"
        self._label = self._message = ""  # the label names the units, or the phase if units are not counted
        self._done = self._total = 0
        self._phase_start = 0.0
        self._eta = Eta(clock)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # --- called by the page --------------------------------------------------------------------------
    def start(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread, and wait briefly, as most work is quick. DataError if the task is busy."""
        with self._lock:
            if self._state == "busy":
                raise DataError(f"The {self._name} is already running. Stop it, or wait until it has finished.")
            self._state = "busy"
            self._stop.clear()
            self._reset_progress("Starting", 0)
        self._thread = threading.Thread(target=self._run, args=(work,), name=f"lora-train-{self._name}", daemon=True)
        self._thread.start()
        self.wait(_QUICK_SECONDS)

    def stop(self) -> None:
        """Stop after the current unit; finished units are kept."""
        self._stop.set()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until the work has ended or the time is over."""
        if self._thread:
            self._thread.join(timeout_seconds)

    def status(self) -> dict[str, Any]:
        """JSON-ready progress: `line` is for display, `total` is 0 if units are not counted, `message` the error."""
        with self._lock:
            return {
                "state": self._state,
                "done": self._done,
                "total": self._total,
                "line": self._line(),
                "message": self._message,
            }

    def _line(self) -> str:
        """`1,240 of 5,000 images checked, about 2 min left`."""
        if not self._total:
            return f"{self._label}…"
        seconds = self._eta.remaining_seconds()
        left = "" if seconds is None else f", about {format_duration(seconds)} left"
        return f"{self._done:,} of {self._total:,} {self._label}{left}"

    # --- called by the work --------------------------------------------------------------------------
    def start_phase(self, label: str, total: int) -> None:
        """Begin a phase of `total` units, 0 if they are not counted."""
        with self._lock:
            self._reset_progress(label, total)

    def report(self, done: int) -> None:
        """Set the number of finished units."""
        with self._lock:
            self._done = done
            if done % _UNITS_PER_MEASUREMENT == 0:
                self._eta.handle(Progress("scan", done, self._total))
                if self._clock() - self._phase_start < _CACHED_SECONDS:
                    self._eta.handle(StateChanged("running"))  # restarts the measurement

    def count_units(self, label: str) -> Callable[[int, int], None]:
        """A function for work that reports its finished units and their number; it raises RunStoppedError on `stop`.

        `label` names the units. The phase of counting begins with the first report.
        """

        def show(done: int, total: int) -> None:
            if done == 0:
                self.start_phase(label, total)
            self.report(done)
            if self.is_stopped():
                raise RunStoppedError

        return show

    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def clear_stop(self) -> None:
        """Ignore an earlier `stop`: it was meant for the phase that has ended."""
        self._stop.clear()

    def _reset_progress(self, label: str, total: int) -> None:
        self._label, self._done, self._total, self._message = label, 0, total, ""
        self._phase_start = self._clock()
        self._eta = Eta(self._clock)
        self._eta.handle(PhaseStarted("scan", total))

    # --- the thread ----------------------------------------------------------------------------------
    def _run(self, work: Callable[[], None]) -> None:
        """Errors go to the status; unexpected ones also reach the console with their traceback."""
        end, message = "failed", "It failed unexpectedly; see the console."
        try:
            work()
            end, message = ("stopped" if self._stop.is_set() else "done"), ""
        except (LoraTrainError, OSError) as error:
            message = str(error)
        finally:
            with self._lock:
                self._state, self._message = end, message
