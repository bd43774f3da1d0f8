"""Borrowing the model: work done under the host's lease."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from lib_lora_train.core.control import Control
from lib_lora_train.core.events import Event
from lib_lora_train.core.memory_errors import is_out_of_memory, memory_full
from lib_lora_train.training.wait_for_model import follow_requests, wait_for_model

if TYPE_CHECKING:
    from lib_lora_train.models.diffusion_model import DiffusionModel

TURN_SECONDS = 0.25
"""For short units of work: how long whoever waits for the model, or the page for progress, waits at most."""

_T = TypeVar("_T")
_Unit = TypeVar("_Unit")
YieldLease = Callable[[], None]
"""Lets whoever waits for the model go first, in a moment when it is not in use."""


class ModelHost(Protocol):
    """What owns the model; `hosts.host.Host` is one."""

    def lease(self, model: DiffusionModel | None = None) -> AbstractContextManager[DiffusionModel]: ...

    def has_waiters(self) -> bool: ...


def run_leased(
    host: ModelHost, model: DiffusionModel, control: Control, work: Callable[[DiffusionModel], _T]
) -> Generator[Event, None, _T]:
    """`work(model)` under a lease, after `wait_for_model`.

    MemoryFullError, with the lease returned, when memory runs out.
    """
    return (yield from run_leased_cooperatively(host, model, control, lambda leased, _: work(leased)))


def run_leased_cooperatively(
    host: ModelHost, model: DiffusionModel, control: Control, work: Callable[[DiffusionModel, YieldLease], _T]
) -> Generator[Event, None, _T]:
    """`work(model, yield_lease)` under leases: long work calls `yield_lease` so that nobody has to wait for its end.

    If another model was loaded in between, the work starts over. Waits and raises as `run_leased` does.
    """

    def attempt() -> _T:
        try:
            with ExitStack() as stack:
                leased = stack.enter_context(host.lease(model))

                def yield_lease() -> None:
                    if host.has_waiters():
                        stack.close()
                        stack.enter_context(host.lease(model))

                return work(leased, yield_lease)
        except (RuntimeError, MemoryError) as reason:
            if not is_out_of_memory(reason):
                raise
            raise memory_full(model.device.type) from reason

    return (yield from wait_for_model(control, attempt))


def run_in_turns(
    host: ModelHost,
    model: DiffusionModel,
    control: Control,
    work: Generator[_Unit, None, _T],
    *,
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
    turn_seconds: float = 0.0,
) -> Generator[Event | _Unit, None, _T]:
    """What `work` yields, produced under short leases, so that others may use the model in between.

    A turn is one unit of work, and more within `turn_seconds` as long as nobody waits for the model; it runs inside
    `within()`. Between units the run may be paused; RunStoppedError once it is stopped. Waits
    and raises as `run_leased` does.
    """

    def run_turn(_: DiffusionModel) -> tuple[list[_Unit], _Returned[_T] | None]:
        began, units = time.monotonic(), list[_Unit]()
        with within():
            while True:
                try:
                    units.append(next(work))
                except StopIteration as end:
                    return units, _Returned(end.value)
                is_late = time.monotonic() - began >= turn_seconds
                if is_late or host.has_waiters() or control.is_paused or control.is_stopped:
                    return units, None

    while True:
        yield from follow_requests(control)
        units, returned = yield from run_leased(host, model, control, run_turn)
        yield from units
        if returned:
            return returned.value


@dataclass(frozen=True)
class _Returned(Generic[_T]):
    """A generator's return value."""

    value: _T
