"""Settings that are a share of the run or a number of steps, in steps of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lib_lora_train.config.parameters import STEPS_OR_SHARE, parameters_of
from lib_lora_train.config.train_config import TrainConfig, duration_in_steps
from lib_lora_train.core.wording import count

if TYPE_CHECKING:
    from lib_lora_train.dataset.plan import Plan


def describe_durations(config: TrainConfig, plan: Plan) -> dict[str, str]:
    """By setting, for those that are set and have an effect: `5% = 42 of 840 steps`, or `42 of 840 steps`."""
    has_effect = {
        "lr_decay": config.lr_schedule == "warmup_stable_decay",
        "stop_text_encoder": config.train_text_encoder and config.method == "lora",
        "warmup": config.lr_schedule != "adafactor",
    }
    names = [one.name for one in parameters_of(TrainConfig) if one.unit == STEPS_OR_SHARE]
    values = {name: getattr(config, name) for name in names if has_effect.get(name, True)}
    return {name: _describe(value, plan.total_steps) for name, value in values.items() if value}


def _describe(value: float, total: int) -> str:
    steps = f"{min(total, duration_in_steps(value, total)):,} of {count(total, 'step')}"
    return f"{100 * value:.3g}% = {steps}" if value < 1 else steps
