"""Mechanical fixes: values of a parameter, or of two that go together, that make a problem vanish and bring no other.

A fix is never taken from a table alone: the settings are judged again with it before it is offered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.plan_warnings import fitting_batch
from lib_lora_train.web.form import number_text
from lib_lora_train.web.markup import place

Judge = Callable[[TrainConfig], Sequence[Problem]]

_GOOD: Mapping[str, tuple[Any, ...]] = {
    "warmup": (0.05, 0.0),
    "learning_rate": (1.0, 1e-4),
    "max_steps": (0,),
    "bucket_step": (64, 32),
    "balance_repeats": (True,),
    "gradient_checkpointing": (True,),
    "fp8_base": (True,),
    "train_text_encoder": (False,),
}
_SIZES = ("resolution", "min_bucket", "max_bucket")


@dataclass(frozen=True)
class Fix:
    """Values by parameter, and the problem that they mend together."""

    problem: Problem
    values: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What a click changes: `Set warmup to 0.05`."""
        return "Set " + " and ".join(f"{place(name).lower()} to {_shown(value)}" for name, value in self.values.items())

    @property
    def places(self) -> str:
        """The parameters, for a sentence about them."""
        return " and ".join(place(name) for name in self.values)


def fixes_of(
    config: TrainConfig, problems: Sequence[Problem], validate: Judge, plan: Plan | None = None
) -> tuple[Fix, ...]:
    """A fix for every problem that has one; `validate` gives the problems of changed settings.

    With the `plan`, batch size and accumulation are looked for together.
    """
    known = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}
    wrong = [problem for problem in problems if problem.where in known]
    found = []
    for problem in wrong:
        parameter = known[problem.where]
        for values in (*_from_plan(problem, plan), *({parameter.name: v} for v in _candidates(parameter, config))):
            after = validate(dataclasses.replace(config, **values))
            if problem not in after and not any(_is_new(other, problem.where, problems) for other in after):
                found.append(Fix(problem, values))
                break
    return tuple(found)


def _is_new(problem: Problem, name: str, before: Sequence[Problem]) -> bool:
    """Whether a change of `name` made this one, and it matters: at the parameter itself anything does.

    What balancing says of itself is no problem.
    """
    is_report = problem.level == "hint" and problem.where == "balance_repeats"
    return problem not in before and not is_report and (problem.where == name or problem.level == "error")


def _from_plan(problem: Problem, plan: Plan | None) -> Iterator[dict[str, Any]]:
    """What only the plan's own counts tell: batches and steps that are all whole, else single images."""
    if plan is None or problem.where not in ("batch_size", "gradient_accumulation"):
        return
    fitting = fitting_batch(plan)
    if problem.where == "batch_size" and fitting:
        yield {"batch_size": fitting[0], "gradient_accumulation": fitting[1]}
    if problem.where == "batch_size" and plan.batch_size > 1:
        yield {"batch_size": 1, "gradient_accumulation": min(256, plan.batch_size * plan.accumulation)}
    if problem.where == "gradient_accumulation":
        count, now = plan.micro_batches_per_epoch, plan.accumulation
        whole = [number for number in range(1, 2 * now) if count % number == 0 and number <= 256]
        yield from ({"gradient_accumulation": number} for number in sorted(whole, key=lambda n: (abs(n - now), n)))


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


def _shown(value: Any) -> str:
    if value in (None, ""):
        return "empty"
    return "off" if value is False else _number(value)


def _number(value: Any) -> str:
    return number_text(value) if isinstance(value, float) else "on" if value is True else str(value)
