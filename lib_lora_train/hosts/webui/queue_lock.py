"""Whether somebody is waiting for a webui's queue lock, and handing it over to them."""

from __future__ import annotations

import time
from typing import Any

_PAUSE_SECONDS = 0.02
_TIMEOUT_SECONDS = 0.5  # threads wake up slowly on a busy machine


def has_waiters(lock: Any) -> bool:
    """Whether a thread is waiting for the lock; True if the lock cannot say."""
    waiting = getattr(lock, "_pending_threads", None)
    return waiting is None or bool(waiting)


def wait_for_handover(lock: Any) -> None:
    """After a release, wait until the next waiting thread has the lock.

    The lock wakes that thread up, but a faster one, such as the thread that released it, could take it first.
    """
    inner = getattr(lock, "_lock", None)
    if inner is None or not hasattr(inner, "locked"):
        time.sleep(_PAUSE_SECONDS)
        return
    end = time.monotonic() + _TIMEOUT_SECONDS
    while not inner.locked() and time.monotonic() < end:
        time.sleep(0.001)
