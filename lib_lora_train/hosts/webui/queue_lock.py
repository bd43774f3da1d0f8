"""A webui's queue lock from outside: whether somebody waits for it, and letting them have it."""

from __future__ import annotations

import time
from typing import Any

_MOMENT_SECONDS = 0.02
_LONGEST_SECONDS = 0.5  # a thread of a busy machine takes its time to wake up


def is_waited_for(lock: Any) -> bool:
    """Whether a thread waits for the lock; True where the lock does not tell."""
    waiting = getattr(lock, "_pending_threads", None)
    return waiting is None or bool(waiting)


def give_way(lock: Any) -> None:
    """After a release: wait until whoever waited has the lock.

    The lock wakes the next one up, but a quicker thread, such as the one that released it, could take it first.
    """
    inner = getattr(lock, "_lock", None)
    if inner is None or not hasattr(inner, "locked"):
        time.sleep(_MOMENT_SECONDS)
        return
    end = time.monotonic() + _LONGEST_SECONDS
    while not inner.locked() and time.monotonic() < end:
        time.sleep(0.001)
