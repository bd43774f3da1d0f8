"""What people ask of a run while it goes on: pause, resume, stop, save now, sample now.

Any thread may ask. The training loop looks between optimiser steps only, so a step is never torn.
"""

from __future__ import annotations

import threading


class Control:
    """The requests to one run. All methods are safe to call from any thread, in any order, repeatedly."""

    def __init__(self) -> None:
        self._paused = threading.Event()
        self._stopped = threading.Event()
        self._save = threading.Event()
        self._sample = threading.Event()
        self._news = threading.Event()

    def pause(self) -> None:
        """Hold after the current step."""
        self._ask(self._paused)

    def resume(self) -> None:
        """Go on after a pause."""
        self._paused.clear()
        self._news.set()

    def stop(self) -> None:
        """End after the current step, paused or not; what was learnt is kept."""
        self._ask(self._stopped)

    def save_now(self) -> None:
        """Write a LoRA file after the current step."""
        self._ask(self._save)

    def sample_now(self) -> None:
        """Draw the sample prompts after the current step."""
        self._ask(self._sample)

    @property
    def paused(self) -> bool:
        """Whether the run has to hold; a stopped run does not."""
        return self._paused.is_set() and not self._stopped.is_set()

    @property
    def stopped(self) -> bool:
        """Whether the run has to end."""
        return self._stopped.is_set()

    @property
    def needs_attention(self) -> bool:
        """Whether anything was asked that is not done yet: the loop ends its turn early."""
        return any(flag.is_set() for flag in (self._paused, self._stopped, self._save, self._sample))

    def take_save(self) -> bool:
        """Whether `save_now` was asked since the last call."""
        return _take(self._save)

    def take_sample(self) -> bool:
        """Whether `sample_now` was asked since the last call."""
        return _take(self._sample)

    def wait_for_news(self, timeout_seconds: float | None = None) -> None:
        """Block until something is asked, or so long; returns at once if that happened since the last call."""
        self._news.wait(timeout_seconds)
        self._news.clear()

    def _ask(self, flag: threading.Event) -> None:
        flag.set()
        self._news.set()  # after the flag: whoever wakes up sees it


def _take(flag: threading.Event) -> bool:
    was_set = flag.is_set()
    flag.clear()
    return was_set
