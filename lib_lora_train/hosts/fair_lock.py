"""A lock that threads get in the order in which they asked for it."""

from __future__ import annotations

import threading
from collections import deque

from lib_lora_train.core.errors import HostError


class FairLock:
    """A lock whose waiters get it in the order they came, and which knows whether anybody waits.

    Not re-entrant: taking it twice in one thread raises HostError instead of hanging for ever.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owner: int | None = None
        self._queue: deque[tuple[int, threading.Event]] = deque()

    def acquire(self) -> None:
        """Returns when the lock is this thread's."""
        me = threading.get_ident()
        with self._guard:
            if self._owner == me:
                raise HostError("The model is already leased by this thread: a lease must not be taken inside another.")
            if self._owner is None:
                self._owner = me
                return
            turn = threading.Event()
            self._queue.append((me, turn))
        has_turn = False
        try:
            has_turn = turn.wait()
        finally:
            if not has_turn:  # Ctrl-C: nobody must be left waiting for a thread that has gone
                self._leave(me, turn)

    def _leave(self, me: int, turn: threading.Event) -> None:
        with self._guard:
            if (me, turn) in self._queue:
                self._queue.remove((me, turn))
                return
        self.release()

    def release(self) -> None:
        """Hands the lock to the thread that has waited longest."""
        with self._guard:
            if not self._queue:
                self._owner = None
                return
            self._owner, turn = self._queue.popleft()
            turn.set()

    def is_wanted(self) -> bool:
        """Whether a thread waits for it."""
        return bool(self._queue)
