"""What a config would train, before anything heavy starts; no PyTorch is needed for that."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import require_usable, validate
from lib_lora_train.core.errors import Problem
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import read_dataset


@dataclass(frozen=True)
class RunPlan:
    """A config that can be trained, its plan, and all that should be known of both; no problem is an error."""

    config: TrainConfig
    plan: Plan
    problems: tuple[Problem, ...]


def plan_run(config: TrainConfig) -> RunPlan:
    """What would be trained; ConfigError or DataError when it cannot be.

    `problems` begins with the settings', then come the images' and the plan's.
    """
    judged = validate(config)
    require_usable(judged)
    dataset = read_dataset(config)
    plan = make_plan(dataset, config)
    return RunPlan(config, plan, (*judged, *dataset.problems, *plan.warnings))
