"""The words that all judgements share: a problem of each level, and settings that have no effect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem


def error_at(where: str, message: str) -> Problem:
    """Training cannot start like this."""
    return Problem("error", where, message)


def warning_at(where: str, message: str) -> Problem:
    """It can, and will probably disappoint."""
    return Problem("warning", where, message)


def hint_at(where: str, message: str) -> Problem:
    """Worth knowing."""
    return Problem("hint", where, message)


def unused(config: TrainConfig, names: Iterable[str], why: str) -> Iterator[Problem]:
    """A hint for each of these parameters that was given a value of its own."""
    default = TrainConfig()
    for name in names:
        if getattr(config, name) != getattr(default, name):
            yield hint_at(name, f"has no effect {why}.")
