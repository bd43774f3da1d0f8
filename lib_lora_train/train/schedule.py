"""Learning-rate factors as pure functions of the step.

`step` counts the optimiser steps already taken, so the first step uses factor(0): with a warm-up that is 0,
as in diffusers and sd-scripts.
"""

from __future__ import annotations

import math


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Steps of the warm-up: below 1 `warmup` is a share of `total_steps`, from 1 on a number of steps."""
    return int(warmup * total_steps) if warmup < 1 else int(warmup)


def lr_factor(schedule: str, step: int, *, total_steps: int, warmup: int = 0) -> float:
    """What the learning rate is multiplied by, in [0, 1], for the schedules `cosine` and `constant`."""
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    assert schedule == "cosine", schedule
    return cosine((step - warmup) / max(1, total_steps - warmup))


def cosine(progress: float) -> float:
    """½ (1 + cos π·progress), half a period from 1 to 0 (Loshchilov & Hutter 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
