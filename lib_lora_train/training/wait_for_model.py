"""Waiting while the host has another model loaded, or while the run is paused. Imports no PyTorch: what only generates
in the webui needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import ModelUnavailableError
from lib_lora_train.core.events import Event, StateChanged

_T = TypeVar("_T")
_RETRY_SECONDS = 1.0


def wait_for_model(control: Control, work: Callable[[], _T]) -> Generator[Event, None, _T]:
    """`work()`, retried while the host has another model loaded (ModelUnavailableError); holds nothing meanwhile.

    Yields StateChanged("waiting") when the wait begins and "running" after it. Raises ModelUnavailableError when the
    run is stopped while it waits.
    """

    def attempt() -> Generator[Event, None, _T]:
        yield from ()
        return work()

    return (yield from retry_without_model(control, attempt))


def retry_without_model(
    control: Control, attempt: Callable[[], Generator[Event, None, _T]]
) -> Generator[Event, None, _T]:
    """`wait_for_model` for work that yields events meanwhile."""
    waited = False
    while True:
        try:
            result = yield from attempt()
            break
        except ModelUnavailableError as reason:
            if control.is_stopped:
                raise
            if not waited:
                waited = True
                yield StateChanged("waiting", str(reason), reason.offer)
            control.wait_for_request(_RETRY_SECONDS)
    if waited:
        yield StateChanged("running")
    return result


def follow_requests(control: Control) -> Iterator[Event]:
    """Between two units of work: the events of a pause, which lasts until somebody resumes the run.

    RunStoppedError once the run has to end.
    """
    if control.is_paused:
        yield StateChanged("paused")
        _wait_out_pause(control)
        if not control.is_stopped:
            yield StateChanged("running")
    if control.is_stopped:
        raise RunStoppedError


def _wait_out_pause(control: Control) -> None:
    while control.is_paused:
        control.wait_for_request()
