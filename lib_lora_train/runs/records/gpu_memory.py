"""GPU memory during a run: how much all programs use, and its curve over the steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

_SECONDS = 1.0  # asking the driver takes longer than a quick step, and the page asks no more often


def read_gpu_memory() -> dict[str, float] | None:
    """GPU memory in use by all programs and in total, in GiB; None if CUDA is not in use."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    free, total = torch.cuda.mem_get_info()
    return {"used_gib": (total - free) / 2**30, "total_gib": total / 2**30}


@dataclass
class MemoryCurve:
    """(step, GiB in use) pairs, at most one a second."""

    points: list[tuple[int, float]] = field(default_factory=list)
    _next: float = 0.0

    def measure(self, step: int) -> None:
        """Add a point unless the last one is too new."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS
        memory = read_gpu_memory()
        if memory:
            self.points.append((step, memory["used_gib"]))
