"""Work that takes minutes, in a thread of its own: how far it is, how long it still takes, how to stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from lib_lora_train.core.errors import DataError, LoraTrainError
from lib_lora_train.core.events import PhaseStarted, Progress, StateChanged
from lib_lora_train.core.progress import Eta, time_text

_AT_ONCE_SECONDS = 0.5  # what is done by then needs no progress bar
_MARK = 20  # units between two looks at the clock
_SETTLING_SECONDS = 2.0  # what is remembered from before comes at once, and says nothing about the rest


class BackgroundTask:
    """One piece of work at a time. Its state is idle, busy, done, stopped or failed."""

    def __init__(self, whose: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._whose = whose
        self._clock = clock
        self._lock = threading.Lock()
        self._state = "idle"
        self._what = self._message = ""  # what the units are, or what is done while they are not counted
        self._done = self._total = 0
        self._began = 0.0
        self._eta = Eta(clock)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # --- asked by the page ---------------------------------------------------------------------------
    def start(self, work: Callable[[], None]) -> None:
        """Begin and wait a moment, as most is done at once; DataError when another piece is under way."""
        with self._lock:
            if self._state == "busy":
                raise DataError(f"The {self._whose} is at work already. Stop that first, or wait for it.")
            self._state = "busy"
            self._stop.clear()
            self._count("Beginning", 0)
        self._thread = threading.Thread(target=self._run, args=(work,), name=f"lora-train-{self._whose}", daemon=True)
        self._thread.start()
        self.wait(_AT_ONCE_SECONDS)

    def stop(self) -> None:
        """End after the present unit; what is done by then counts."""
        self._stop.set()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until it is done or given up."""
        if self._thread:
            self._thread.join(timeout_seconds)

    def status(self) -> dict[str, Any]:
        """How far it is: `done` of `total` (0 if they are not counted), all in one `line`; `message` is a failure's."""
        with self._lock:
            return {
                "state": self._state,
                "done": self._done,
                "total": self._total,
                "line": self._line(),
                "message": self._message,
            }

    def _line(self) -> str:
        """`1,240 of 5,000 images looked at, about 2 min left`."""
        if not self._total:
            return f"{self._what}…"
        seconds = self._eta.remaining_seconds()
        left = "" if seconds is None else f", about {time_text(seconds)} left"
        return f"{self._done:,} of {self._total:,} {self._what}{left}"

    # --- told by the work ----------------------------------------------------------------------------
    def begin(self, what: str, total: int) -> None:
        """The work comes to something new: so many units, or 0 where they are not counted."""
        with self._lock:
            self._count(what, total)

    def tell(self, done: int) -> None:
        """So many units are done."""
        with self._lock:
            self._done = done
            if done % _MARK == 0:
                self._eta.take(Progress("scan", done, self._total))
                if self._clock() - self._began < _SETTLING_SECONDS:
                    self._eta.take(StateChanged("running"))  # measures anew from here

    def is_stopped(self) -> bool:
        """Whether somebody has asked for its end."""
        return self._stop.is_set()

    def forget_stop(self) -> None:
        """A stop was meant for what lies behind; the work has more to do."""
        self._stop.clear()

    def _count(self, what: str, total: int) -> None:
        self._what, self._done, self._total, self._message = what, 0, total, ""
        self._began = self._clock()
        self._eta = Eta(self._clock)
        self._eta.take(PhaseStarted("scan", total))

    # --- the thread ----------------------------------------------------------------------------------
    def _run(self, work: Callable[[], None]) -> None:
        """Whatever happens is told in the status; a fault of ours too, before it reaches the console."""
        end, message = "failed", "It ended with a fault; the console says more."
        try:
            work()
            end, message = ("stopped" if self._stop.is_set() else "done"), ""
        except (LoraTrainError, OSError) as error:
            message = str(error)
        finally:
            with self._lock:
                self._state, self._message = end, message
