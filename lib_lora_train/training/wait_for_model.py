"""Waiting while the host has another model loaded. Imports no PyTorch: what only generates in the webui needs none."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from lib_lora_train.core.errors import ModelUnavailableError
from lib_lora_train.core.events import Event, StateChanged
from lib_lora_train.training.control import Control

_T = TypeVar("_T")
_RETRY_SECONDS = 1.0


def wait_for_model(control: Control, work: Callable[[], _T]) -> Generator[Event, None, _T]:
    """`work()`, retried while the host has another model loaded (ModelUnavailableError); holds nothing meanwhile.

    Yields StateChanged("waiting") when the wait begins and "running" after it. Raises ModelUnavailableError when the
    run is stopped while it waits.
    """
    waited = False
    while True:
        try:
            result = work()
            break
        except ModelUnavailableError as reason:
            if control.is_stopped:
                raise
            if not waited:
                waited = True
                yield StateChanged("waiting", str(reason))
            control.wait_for_request(_RETRY_SECONDS)
    if waited:
        yield StateChanged("running")
    return result
