"""What all validation shares: problems of each level, limits and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem

HIGH_DROPOUT = 0.3
"""Caption and tag dropout above this share is warned of."""

TRIGGER_TWICE = "is the trigger, which is put first anyway, so it would appear twice. Remove one of them."


def error_at(where: str, message: str) -> Problem:
    """A problem that prevents the start."""
    return Problem("error", where, message)


def warning_at(where: str, message: str) -> Problem:
    """A problem that will probably spoil the result."""
    return Problem("warning", where, message)


def hint_at(where: str, message: str) -> Problem:
    """Something worth knowing."""
    return Problem("hint", where, message)


def off_step(side: int, step: int) -> str:
    """The sentence about a resolution that is not a multiple of bucket_step, and the side of its square bucket."""
    square = max(side // step, 1) * step
    return f"{side} is not a multiple of bucket_step {step}; the square bucket has {square} px."


def unused(config: TrainConfig, names: Iterable[str], why: str) -> Iterator[Problem]:
    """A hint for each of these settings that is not at its default: it has no effect, `why` says when."""
    default = TrainConfig()
    for name in names:
        if getattr(config, name) != getattr(default, name):
            yield hint_at(name, f"has no effect {why}.")
