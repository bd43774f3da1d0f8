"""How many CPU threads a turn of training uses inside a webui, whose process we did not start.

There OpenMP's threads spin while they wait, and a thread that spins takes its core from other programs, for which the
other threads then wait: with as many threads as cores, a busy neighbour slows training down many times over. So a turn
uses the cores that other processes leave free. The stand-alone program needs none of this: it makes waiting threads
sleep (`core.cpu_environment`) and keeps their number, and with it every bit of the result, the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch

_MEASURE_SECONDS = 2.0

CpuSeconds = tuple[float, float]
"""Seconds of computing since the start: of the whole machine, and of this process."""


class ThreadLimit:
    """The number of threads for the next turn: `cores` less those that other processes keep busy, at least one."""

    def __init__(
        self, cores: int, *, clock: Callable[[], float] = time.monotonic, read: Callable[[], CpuSeconds] | None = None
    ) -> None:
        self._cores = cores
        self._clock = clock
        self._read = read or read_cpu_seconds
        self._threads = cores
        self._measured = self._clock()
        self._seconds = self._read()

    def threads(self) -> int:
        """The number as of now; measured again when the last measurement is two seconds old."""
        now = self._clock()
        elapsed = now - self._measured
        if elapsed >= _MEASURE_SECONDS:
            machine, own = self._read()
            others_busy = ((machine - self._seconds[0]) - (own - self._seconds[1])) / elapsed
            self._threads = max(1, self._cores - max(0, round(others_busy)))
            self._measured, self._seconds = now, (machine, own)
        return self._threads


def read_cpu_seconds() -> CpuSeconds:
    """What the machine and this process have computed so far."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = machine.idle + getattr(machine, "iowait", 0.0)
    guest = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)  # counted in user and nice too
    return sum(machine) - idle - guest, own.user + own.system


def make_thread_limit() -> ThreadLimit | None:
    """A limit for this process, None where OpenMP's threads sleep while they wait."""
    is_passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    return None if is_passive else ThreadLimit(torch.get_num_threads())


@contextmanager
def limited_threads(limit: ThreadLimit | None, device: torch.device) -> Iterator[None]:
    """PyTorch computes on the CPU with at most `limit` threads inside; the webui's own number is restored after it."""
    before = torch.get_num_threads()
    wanted = min(before, limit.threads()) if limit and device.type == "cpu" else before
    if wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
