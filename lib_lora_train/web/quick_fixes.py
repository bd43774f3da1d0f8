"""Quick fixes: new values for one or two settings that solve a problem without causing another.

Every candidate is validated before it is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.optimizer import usual_learning_rates
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.wording import value_text
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.plan_warnings import suggest_batch_size
from lib_lora_train.dataset.prompt_suggestions import suggest_prompts
from lib_lora_train.web.markup import location_label

ProblemsWith = Callable[[TrainConfig], Sequence[Problem]]

_GOOD_VALUES: Mapping[str, tuple[Any, ...]] = {
    "warmup": (0.05, 0.0),
    "max_steps": (0,),
    "bucket_step": (64, 32),
    "balance_repeats": (True,),
    "gradient_checkpointing": (True,),
    "fp8_base": (True,),
    "train_text_encoder": (False,),
}
_SIZES = ("resolution", "resolution_height", "min_bucket", "max_bucket")


@dataclass(frozen=True)
class Fix:
    """A problem, the values by setting that solve it, and the lists by setting that they extend."""

    problem: Problem
    values: Mapping[str, Any]
    extended: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Text of the button: `Set warmup to 0.05`, `Add “zkw, on a beach” and 2 more to sample prompts`."""
        changes: dict[str, list[str]] = {"set": [], "add": []}
        for name, value in self.values.items():
            setting = _lower_first(location_label(name))
            if name in self.extended:
                changes["add"].append(f"{_value_text(value[len(self.extended[name]) :])} to {setting}")
            else:
                changes["set"].append(f"{setting} to {_value_text(value)}")
        label = " and ".join(f"{verb} {' and '.join(of_verb)}" for verb, of_verb in changes.items() if of_verb)
        return label[:1].upper() + label[1:]

    @property
    def setting_names(self) -> str:
        """The settings that change, for a message."""
        return " and ".join(location_label(name) for name in self.values)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def find_fixes(
    config: TrainConfig, problems: Sequence[Problem], problems_with: ProblemsWith, plan: Plan | None = None
) -> tuple[Fix, ...]:
    """A fix for every problem that has one; `problems_with(config)` returns the problems of changed settings.

    With a `plan`, batch size and gradient accumulation can be changed together.
    """
    found = []
    for problem in problems:
        for values in _all_candidates(problem, config, plan):
            after = problems_with(config.replace_at(values))
            if not _is_in(problem, after) and not any(_is_new(other, problem.where, problems) for other in after):
                found.append(Fix(problem, values, _extended(config, values)))
                break
    return tuple(found)


def _extended(config: TrainConfig, values: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The present lists to which the new values only add something."""
    present = {name: getattr(config, name, None) for name in values}
    return {
        name: now for name, now in present.items() if isinstance(now, tuple) and now and values[name][: len(now)] == now
    }


def _all_candidates(problem: Problem, config: TrainConfig, plan: Plan | None) -> Iterator[Mapping[str, Any]]:
    """What may solve a problem, best first: its own remedy, what the plan suggests, usual values of its setting."""
    known = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}
    if problem.remedy:
        yield dict(problem.remedy)
    yield from _from_plan(problem, plan, config)
    if problem.where in known:
        parameter = known[problem.where]
        yield from ({parameter.name: value} for value in _candidates(parameter, config))


def _is_in(problem: Problem, others: Sequence[Problem]) -> bool:
    """Whether the problem remains, be it with another suggestion."""
    return any((problem.where, problem.message) == (other.where, other.message) for other in others)


def _is_new(problem: Problem, name: str, before: Sequence[Problem]) -> bool:
    """Whether changing `name` caused this problem and it matters: errors and warnings, and anything about `name`.

    A warning that was there in other words does not count.
    """
    if _is_in(problem, before):
        return False
    if problem.where == name or problem.level == "error":
        return True
    serious = [other.where for other in before if other.level != "hint"]
    return problem.level == "warning" and problem.where not in serious


def _from_plan(problem: Problem, plan: Plan | None, config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Sample prompts for this dataset; batch sizes and accumulation without incomplete batches, else of one image."""
    if problem.where == "sample_prompts" and problem.level != "error":
        prompts = suggest_prompts(config, plan.dataset if plan else None)
        if prompts:
            yield {"sample_prompts": (*config.sample_prompts, *prompts)}
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
    if parameter.name in ("learning_rate", "unet_lr", "text_encoder_lr", "text_encoder_2_lr"):
        yield from usual_learning_rates(config, parameter.name)
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
    """The value; of a list its first entry and how many follow, without headings such as `# control`."""
    if not isinstance(value, tuple):
        return value_text(value)
    entries = [entry for entry in value if not str(entry).startswith("#")]
    if not entries:
        return value_text(())
    return f"“{entries[0]}”" + (f" and {len(entries) - 1} more" if len(entries) > 1 else "")
