"""A session that is opened by its first use, so that a webui starts without importing what trains."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from lib_lora_train.core.errors import LoraTrainError, SessionUnavailableError
from lib_lora_train.web.page_key import page_key

if TYPE_CHECKING:
    from lib_lora_train.web.session import Session

log = logging.getLogger("lora_train")


def lazy_session(open_session: Callable[[], Session]) -> Session:
    """Stands for the session; the first use of any of its attributes opens it, while other threads wait.

    Whatever fails then is a SessionUnavailableError with the reason, for this and every later use: `open_session` is
    called once.
    """
    return cast("Session", _LazySession(open_session))


class _LazySession:
    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open: Callable[[], Session] | None = open_session
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._failure: SessionUnavailableError | None = None

    @property
    def page_key(self) -> str:
        """The key of the page, for which nothing needs to be opened."""
        return page_key()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked by Python itself, such as to copy or inspect
            raise AttributeError(name)
        return getattr(self._opened(), name)

    def _opened(self) -> Session:
        with self._lock:
            if self._open:
                open_session, self._open = self._open, None
                try:
                    self._session = open_session()
                except LoraTrainError as error:
                    self._failure = SessionUnavailableError(str(error))
                except Exception as error:  # any package or a webui's module can fail as it is imported
                    log.exception("The trainer could not be started")
                    self._failure = _unexpected(error)
            if self._session is None:
                raise self._failure or SessionUnavailableError("The trainer could not be started. Restart the webui.")
            return self._session


def _unexpected(error: Exception) -> SessionUnavailableError:
    return SessionUnavailableError(
        f"The trainer could not be started ({type(error).__name__}: {error}). The console shows where. Update the "
        "extension and the webui, and restart the webui."
    )
