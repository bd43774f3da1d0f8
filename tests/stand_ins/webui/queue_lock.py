"""The lock under which a webui does one thing at a time."""

from __future__ import annotations

import threading
from collections import deque


class QueueLock:
    """First come, first served, but a thread that acquires it right after a release may overtake the next in line."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guard = threading.Lock()
        self._pending_threads: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if self._lock.acquire(blocking=False):
                return
            woken = threading.Event()
            self._pending_threads.append(woken)
        woken.wait()
        self._lock.acquire()

    @property
    def is_held(self) -> bool:
        return self._lock.locked()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._pending_threads:
                self._pending_threads.popleft().set()
            self._lock.release()
