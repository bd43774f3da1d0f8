"""Plan a run before anything heavy starts. Does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import require_usable, validate
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.writable import scan_write_obstacle
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import read_dataset


@dataclass(frozen=True)
class RunPlan:
    """A valid config, its plan, and warnings and hints about both; none of the problems is an error."""

    config: TrainConfig
    plan: Plan
    problems: tuple[Problem, ...]


def plan_run(config: TrainConfig) -> RunPlan:
    """The plan of a run; ConfigError or DataError if it cannot be trained.

    `problems` lists those of the settings first, then those of the images and of the plan.
    """
    problems = validate(config)
    require_usable([*problems, *_output_problems(config)])
    dataset = read_dataset(config)
    plan = make_plan(dataset, config)
    return RunPlan(config, plan, (*problems, *dataset.problems, *plan.warnings))


def _output_problems(config: TrainConfig) -> list[Problem]:
    """Why the LoRA files could not be saved, before minutes are spent on loading and encoding."""
    obstacle = scan_write_obstacle(user_path(config.output_dir).absolute()) if config.output_dir else ""
    text = f"{config.output_dir} cannot be used: {obstacle}. Choose another folder."
    return [Problem("error", "output_dir", text)] if obstacle else []
