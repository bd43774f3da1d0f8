"""Borrowing the model: work done under the host's lease."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from lib_lora_train.core.errors import MemoryFullError
from lib_lora_train.core.events import Event
from lib_lora_train.training.control import Control
from lib_lora_train.training.wait_for_model import wait_for_model

if TYPE_CHECKING:
    from lib_lora_train.models.diffusion_model import DiffusionModel

_T = TypeVar("_T")
Breathe = Callable[[], None]
"""Lets whoever waits for the model go first; the model is not in use meanwhile."""
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
    """`work(model)` done under a lease; waits as `wait_for_model` does.

    MemoryFullError, the lease given back, when the graphics card's memory runs out.
    """
    return (yield from leased_with_yields(host, model, control, lambda lent, _: work(lent)))


def leased_with_yields(
    host: Lender, model: DiffusionModel, control: Control, work: Callable[[DiffusionModel, Breathe], _T]
) -> Generator[Event, None, _T]:
    """`work(model, breathe)` done under leases: a long piece that calls `breathe` keeps nobody waiting for its end.

    Waits as `wait_for_model` does. If another model was loaded in between, the work starts over. Errors as `leased`.
    """

    def turn() -> _T:
        try:
            with ExitStack() as held:
                lent = held.enter_context(host.lease(model))

                def breathe() -> None:
                    if host.is_wanted():
                        held.close()
                        held.enter_context(host.lease(model))

                return work(lent, breathe)
        except torch.cuda.OutOfMemoryError as reason:
            raise MemoryFullError(_MEMORY_IS_FULL) from reason

    return (yield from wait_for_model(control, turn))
