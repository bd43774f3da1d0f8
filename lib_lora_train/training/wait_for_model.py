"""Waiting while the model is away. Loads no PyTorch, so that what only asks the webui for images needs none."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from lib_lora_train.core.errors import ModelAwayError
from lib_lora_train.core.events import Event, StateChanged
from lib_lora_train.training.control import Control

_T = TypeVar("_T")
_LOOK_AGAIN_SECONDS = 1.0


def wait_for_model(control: Control, work: Callable[[], _T]) -> Generator[Event, None, _T]:
    """`work()`. While the host has another model loaded (ModelAwayError): wait, hold nothing, say so, try again.

    Raises ModelAwayError when the run is stopped during such a wait.
    """
    waited = False
    while True:
        try:
            result = work()
            break
        except ModelAwayError as reason:
            if control.stopped:
                raise
            if not waited:
                waited = True
                yield StateChanged("waiting", str(reason))
            control.wait_for_news(_LOOK_AGAIN_SECONDS)
    if waited:
        yield StateChanged("running")
    return result
