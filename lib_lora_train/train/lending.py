"""Borrowing the model: work done under the host's lease."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from lib_lora_train.errors import MemoryFullError
from lib_lora_train.events import Event
from lib_lora_train.train.control import Control
from lib_lora_train.train.patience import patiently

if TYPE_CHECKING:
    from lib_lora_train.models.model import DiffusionModel

_T = TypeVar("_T")
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
