"""Runs planned from the raw values of an API request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lora_train.config.train_config import read_config
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.dataset.durations import describe_durations
from lib_lora_train.hosts.host import Host
from lib_lora_train.runs.checks.checkpoint_check import CheckpointCheck, check_checkpoint
from lib_lora_train.runs.checks.write_places import WritePlaces
from lib_lora_train.runs.estimates.requirements import Requirements
from lib_lora_train.runs.planning import RunPlan, plan_run


def plan_usable_run(values: Mapping[str, Any], host: Host, places: WritePlaces | None) -> RunPlan:
    """The plan of a run with these settings; ConfigError or DataError if they or the checkpoint are unusable."""
    config, problems = read_config(values)
    require_usable(problems)
    job = plan_run(config, places)
    require_usable(check_checkpoint(job.config, host.run_target(job.config)).problems)
    return job


def describe_plan_values(job: RunPlan, model: CheckpointCheck, requirements: Requirements) -> dict[str, Any]:
    """The plan in numbers, the model in a sentence, settings in steps, and all warnings."""
    plan = job.plan
    return {
        "images": len(plan.dataset.items),
        "steps_per_epoch": plan.steps_per_epoch,
        "epochs": plan.epochs,
        "total_steps": plan.total_steps,
        **requirements.values,
        "model": model.description,
        "durations": describe_durations(job.config, plan),
        "warnings": [str(problem) for problem in (*job.problems, *model.problems, *requirements.problems)],
    }
