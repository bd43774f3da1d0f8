"""A lock that threads acquire in the order in which they requested it."""

from __future__ import annotations

import threading
from collections import deque

from lib_lora_train.core.errors import HostError

NESTED_LEASE = "This thread already leases the model; leases cannot be nested."


class FairLock:
    """A first-come, first-served lock that knows whether anybody is waiting.

    Not re-entrant: acquiring it twice in one thread raises HostError instead of deadlocking.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._queue: deque[tuple[int, threading.Event]] = deque()

    def acquire(self) -> None:
        """Wait until this thread holds the lock."""
        me = threading.get_ident()
        with self._guard:
            if self._owner == me:
                raise HostError(NESTED_LEASE)
            if self._owner is None:
                self._owner = me
                return
            turn = threading.Event()
            self._queue.append((me, turn))
        has_turn = False
        try:
            has_turn = turn.wait()
        finally:
            if not has_turn:  # Ctrl-C: otherwise the queue would wait for a thread that is gone
                self._leave(me, turn)

    def _leave(self, me: int, turn: threading.Event) -> None:
        with self._guard:
            if (me, turn) in self._queue:
                self._queue.remove((me, turn))
                return
        self.release()

    def release(self) -> None:
        """Hand the lock to the thread that has waited longest."""
        with self._guard:
            if not self._queue:
                self._owner = None
                return
            self._owner, turn = self._queue.popleft()
            turn.set()

    def has_waiters(self) -> bool:
        """Whether a thread is waiting for the lock."""
        return bool(self._queue)
