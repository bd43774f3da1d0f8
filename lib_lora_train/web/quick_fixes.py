"""Quick fixes: new values for one or two settings that solve a problem without causing another.

Every candidate is validated before it is offered.
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
from lib_lora_train.dataset.plan_warnings import suggest_batch_size
from lib_lora_train.web.form import number_text
from lib_lora_train.web.markup import location_label

ProblemsWith = Callable[[TrainConfig], Sequence[Problem]]

_GOOD_VALUES: Mapping[str, tuple[Any, ...]] = {
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
    """A problem, and the values by setting that solve it."""

    problem: Problem
    values: Mapping[str, Any]

    @property
    def label(self) -> str:
        """Text of the button: `Set warmup to 0.05`."""
        return "Set " + " and ".join(
            f"{location_label(name).lower()} to {_value_text(value)}" for name, value in self.values.items()
        )

    @property
    def setting_names(self) -> str:
        """The settings that change, for a message."""
        return " and ".join(location_label(name) for name in self.values)


def find_fixes(
    config: TrainConfig, problems: Sequence[Problem], problems_with: ProblemsWith, plan: Plan | None = None
) -> tuple[Fix, ...]:
    """A fix for every problem that has one; `problems_with(config)` returns the problems of changed settings.

    With a `plan`, batch size and gradient accumulation can be changed together.
    """
    known = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}
    found = []
    for problem in (problem for problem in problems if problem.where in known):
        parameter = known[problem.where]
        for values in (*_from_plan(problem, plan), *({parameter.name: v} for v in _candidates(parameter, config))):
            after = problems_with(dataclasses.replace(config, **values))
            if problem not in after and not any(_is_new(other, problem.where, problems) for other in after):
                found.append(Fix(problem, values))
                break
    return tuple(found)


def _is_new(problem: Problem, name: str, before: Sequence[Problem]) -> bool:
    """Whether changing `name` caused this problem and it matters: errors, and anything about `name` itself.

    The hint that reports what balancing did does not count.
    """
    is_report = problem.level == "hint" and problem.where == "balance_repeats"
    return problem not in before and not is_report and (problem.where == name or problem.level == "error")


def _from_plan(problem: Problem, plan: Plan | None) -> Iterator[dict[str, Any]]:
    """Batch sizes and accumulation that leave no incomplete batch or step, else batches of one image."""
    if plan is None or problem.where not in ("batch_size", "gradient_accumulation"):
        return
    fitting = suggest_batch_size(plan)
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
    return (value for value in _suggestions(parameter, config) if value != now and _is_usable(parameter, value))


def _suggestions(parameter: Parameter, config: TrainConfig) -> Iterator[Any]:
    yield from _GOOD_VALUES.get(parameter.name, ())
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


def _value_text(value: Any) -> str:
    if value in (None, ""):
        return "empty"
    return "off" if value is False else _number(value)


def _number(value: Any) -> str:
    return number_text(value) if isinstance(value, float) else "on" if value is True else str(value)
