"""Plan a run before anything heavy starts. Does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.sample_prompts import writes_own_prompts
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import require_usable, validate
from lib_lora_train.core.errors import Problem
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.prompt_suggestions import suggest_prompts
from lib_lora_train.dataset.scan import Dataset, read_dataset
from lib_lora_train.runs.checks.write_places import WritePlaces, output_dir_problems, place_problems


@dataclass(frozen=True)
class RunPlan:
    """A valid config, its plan, and warnings and hints about both; none of the problems is an error.

    The config has the prompts that the run writes itself where the user has written none.
    """

    config: TrainConfig
    plan: Plan
    problems: tuple[Problem, ...]


def plan_run(config: TrainConfig, places: WritePlaces | None = None, dataset: Dataset | None = None) -> RunPlan:
    """The plan of a run; ConfigError or DataError if it cannot be trained, or cannot write to `places`.

    `dataset` is that of its folders, if they were read already. `problems` lists those of the settings first, then
    those of the images and of the plan.
    """
    problems = [*validate(config), *(place_problems(config, places) if places else output_dir_problems(config))]
    require_usable(problems)
    dataset = dataset or read_dataset(config)
    if writes_own_prompts(config):
        config = config.replace(sample_prompts=suggest_prompts(config, dataset))
    plan = make_plan(dataset, config)
    return RunPlan(config, plan, (*problems, *dataset.problems, *plan.warnings))
