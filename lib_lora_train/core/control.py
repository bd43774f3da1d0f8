"""Requests to a running training: pause, resume, stop, drop, save now, sample now.

Any thread may make them. The training loop checks between optimiser steps only, so a step is never cut short; other
work checks between its own units, such as the steps of sampling.
"""

from __future__ import annotations

import threading


class RunStoppedError(Exception):
    """The run was stopped in the middle of work that is not training; what is missing is done when it is resumed."""


class Control:
    """The requests to one run. All methods may be called from any thread, in any order, repeatedly.

    `is_attended`: somebody can resume a run that pauses for a problem, as on the page. On the command line nobody can.
    """

    def __init__(self, *, is_attended: bool = False) -> None:
        self.is_attended = is_attended
        self._paused = threading.Event()
        self._stopped = threading.Event()
        self._dropped = threading.Event()
        self._save = threading.Event()
        self._sample = threading.Event()
        self._any_model = threading.Event()
        self._requested = threading.Event()

    def pause(self) -> None:
        """Pause after the current step."""
        self._request(self._paused)

    def resume(self) -> None:
        """Continue after a pause."""
        self._paused.clear()
        self._requested.set()

    def stop(self) -> None:
        """End after the current step, paused or not; what was learnt is kept."""
        self._request(self._stopped)

    def drop(self) -> None:
        """End after the current step without saving it; what was saved before is kept."""
        self._dropped.set()
        self._request(self._stopped)

    def save_now(self) -> None:
        """Write a LoRA file after the current step."""
        self._request(self._save)

    def sample_now(self) -> None:
        """Generate the sample images after the current step."""
        self._request(self._sample)

    def accept_any_model(self) -> None:
        """Continue on the model that is loaded now, even if it is not the one that the run was started on."""
        self._request(self._any_model)

    @property
    def accepts_any_model(self) -> bool:
        """Whether the run may continue on another model."""
        return self._any_model.is_set()

    @property
    def is_paused(self) -> bool:
        """Whether the run has to pause; a stopped run does not."""
        return self._paused.is_set() and not self._stopped.is_set()

    @property
    def is_stopped(self) -> bool:
        """Whether the run has to end."""
        return self._stopped.is_set()

    @property
    def is_dropped(self) -> bool:
        """Whether the run has to end without saving its last steps."""
        return self._dropped.is_set()

    @property
    def pending(self) -> tuple[str, ...]:
        """The names of the requests that wait for the current step, "pause" also while it is in effect."""
        flags = {"pause": self._paused, "stop": self._stopped, "save": self._save, "sample": self._sample}
        return tuple(name for name, flag in flags.items() if flag.is_set())

    @property
    def has_requests(self) -> bool:
        """Whether any request is unanswered: the loop then ends its turn early."""
        return bool(self.pending)

    def pop_save_request(self) -> bool:
        """Whether `save_now` was called since the last call."""
        return _pop(self._save)

    def pop_sample_request(self) -> bool:
        """Whether `sample_now` was called since the last call."""
        return _pop(self._sample)

    def wait_for_request(self, timeout_seconds: float | None = None) -> None:
        """Block until the next request or the timeout; returns at once if there was one since the last call."""
        self._requested.wait(timeout_seconds)
        self._requested.clear()

    def _request(self, flag: threading.Event) -> None:
        flag.set()
        self._requested.set()  # after the flag, so that the woken thread sees it


def _pop(flag: threading.Event) -> bool:
    was_set = flag.is_set()
    flag.clear()
    return was_set
