"""Borrowing the model: work done under the host's lease, and patience while the model is away."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from lib_lora_train.errors import MemoryFullError, ModelAwayError
from lib_lora_train.events import Event, StateChanged
from lib_lora_train.train.control import Control

if TYPE_CHECKING:
    from lib_lora_train.models.model import DiffusionModel

_T = TypeVar("_T")
_LOOK_AGAIN_SECONDS = 1.0
_MEMORY_IS_FULL = (
    "The graphics card's memory is full. Close other programs that use the card, or lower the resolution, and start or "
    "resume the run."
)


class Lender(Protocol):
    """Who owns the model; `hosts.base.Host` is one."""

    def lease(self, model: DiffusionModel | None = None) -> AbstractContextManager[DiffusionModel]: ...

    def is_wanted(self) -> bool: ...


def leased(
    host: Lender, model: DiffusionModel, control: Control, work: Callable[[DiffusionModel], _T]
) -> Generator[Event, None, _T]:
    """`work(model)` done under a lease; waits as `patiently` does.

    MemoryFullError, the lease given back, when the graphics card's memory runs out.
    """

    def turn() -> _T:
        try:
            with host.lease(model) as lent:
                return work(lent)
        except torch.cuda.OutOfMemoryError as reason:
            raise MemoryFullError(_MEMORY_IS_FULL) from reason

    return (yield from patiently(control, turn))


def patiently(control: Control, work: Callable[[], _T]) -> Generator[Event, None, _T]:
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
