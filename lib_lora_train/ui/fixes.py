"""Mechanical fixes: values of one parameter that make its problem vanish and bring no other.

A fix is never taken from a table alone: the settings are judged again with it before it is offered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config import TrainConfig
from lib_lora_train.errors import Problem
from lib_lora_train.parameters import Parameter, parameters_of
from lib_lora_train.ui.form import number_text
from lib_lora_train.ui.markup import place

Judge = Callable[[TrainConfig], Sequence[Problem]]

_GOOD: Mapping[str, tuple[Any, ...]] = {
    "warmup": (0.05, 0.0),
    "learning_rate": (1.0, 1e-4),
    "max_steps": (0,),
    "bucket_step": (64, 32),
    "gradient_checkpointing": (True,),
    "fp8_base": (True,),
    "train_text_encoder": (False,),
}
_SIZES = ("resolution", "min_bucket", "max_bucket")


@dataclass(frozen=True)
class Fix:
    """One parameter's value, and the problem that it mends."""

    problem: Problem
    name: str
    value: Any

    @property
    def label(self) -> str:
        """What a click changes: `Set warmup to 0.05`."""
        shown = "empty" if self.value in (None, "") else "off" if self.value is False else _number(self.value)
        return f"Set {place(self.name).lower()} to {shown}"


def fixes_of(config: TrainConfig, problems: Sequence[Problem], judge: Judge) -> tuple[Fix, ...]:
    """A fix for every problem that has one; `judge` gives the problems of changed settings."""
    known = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}
    wrong = [problem for problem in problems if problem.where in known]
    found = []
    for problem in wrong:
        parameter = known[problem.where]
        for value in _candidates(parameter, config):
            after = judge(dataclasses.replace(config, **{parameter.name: value}))
            if problem not in after and not any(_is_new(other, parameter.name, problems) for other in after):
                found.append(Fix(problem, parameter.name, value))
                break
    return tuple(found)


def _is_new(problem: Problem, name: str, before: Sequence[Problem]) -> bool:
    """Whether a change of `name` made this one, and it matters: at the parameter itself anything does."""
    return problem not in before and (problem.where == name or problem.level == "error")


def _candidates(parameter: Parameter, config: TrainConfig) -> Iterator[Any]:
    now = getattr(config, parameter.name)
    return (value for value in _ideas(parameter, config) if value != now and _is_usable(parameter, value))


def _ideas(parameter: Parameter, config: TrainConfig) -> Iterator[Any]:
    yield from _GOOD.get(parameter.name, ())
    if parameter.name in _SIZES:
        step, side = config.bucket_step, getattr(config, parameter.name)
        yield from (max(step, side // step * step), (side // step + 1) * step)
    if parameter.name == "batch_size":
        yield from range(config.batch_size - 1, 0, -1)
    yield parameter.default


def _is_usable(parameter: Parameter, value: Any) -> bool:
    if value is None:
        return parameter.optional
    if isinstance(value, (int, float)) and parameter.low is not None and value < parameter.low:
        return False
    return not (isinstance(value, (int, float)) and parameter.high is not None and value > parameter.high)


def _number(value: Any) -> str:
    return number_text(value) if isinstance(value, float) else "on" if value is True else str(value)
