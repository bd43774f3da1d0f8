"""A quick fix is offered only if it solves its problem and causes no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import Problem
from lib_lora_train.web.quick_fixes import find_fixes
from tests.stand_ins.training_parts import small_plan
from tests.stand_ins.ui import small_config


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"optimizer": "Prodigy", "learning_rate": 1e-4}, "Set learning rate to 1"),
        ({"resolution": 100}, "Set resolution to 64"),
        ({"bucket_step": 12}, "Set bucket step to 64"),
        ({"enable_buckets": False, "bucket_no_upscale": True}, "Set bucket no upscale to off"),
    ],
)
def test_a_fix_solves_its_problem_and_causes_no_other(values: dict[str, Any], label: str) -> None:
    config = small_config(Path("/set")).replace(**values)
    before = validate(config)
    (fix,) = [fix for fix in find_fixes(config, before, validate) if fix.label == label]
    after = validate(config.replace(**fix.values))
    assert fix.problem not in after
    assert {p for p in after if p.level == "error"} <= set(before)


def test_no_fix_is_offered_if_no_value_helps() -> None:
    unsolvable = Problem("warning", "rank", "whatever")
    assert find_fixes(TrainConfig(), (unsolvable,), lambda _: (unsolvable,)) == ()


def test_no_fix_is_offered_that_causes_an_error() -> None:
    warning, error = Problem("warning", "rank", "too small"), Problem("error", "alpha", "does not fit")
    assert find_fixes(TrainConfig(rank=1), (warning,), lambda c: (warning,) if c.rank == 1 else (error,)) == ()


def test_a_batch_size_without_incomplete_batches_is_found() -> None:
    def fitting(config: TrainConfig) -> tuple[Problem, ...]:
        return (Problem("hint", "batch_size", f"{12 % config.batch_size} missing"),) if 12 % config.batch_size else ()

    config = TrainConfig(batch_size=8)
    (fix,) = find_fixes(config, fitting(config), fitting)
    assert fix.values == {"batch_size": 6}


def test_batch_size_and_accumulation_are_found_together() -> None:
    """12 samples: batches of 5 leave two over. 3 × 2 is nearest to 5 images per step among those that divide."""
    config = TrainConfig(resolution=64, min_bucket=64, batch_size=5)

    def problems_with(changed: TrainConfig) -> tuple[Problem, ...]:
        return small_plan(changed, sizes=((64, 64),) * 6).warnings

    plan = small_plan(config, sizes=((64, 64),) * 6)
    (fix,) = [
        fix for fix in find_fixes(config, plan.warnings, problems_with, plan) if fix.problem.where == "batch_size"
    ]
    assert fix.values == {"batch_size": 3, "gradient_accumulation": 2}
    assert fix.label == "Set batch size to 3 and gradient accumulation to 2"
    assert not [p for p in problems_with(config.replace(**fix.values)) if p.where in fix.values]


def test_an_accumulation_without_incomplete_steps_is_found() -> None:
    config = TrainConfig(resolution=64, min_bucket=64, batch_size=2, gradient_accumulation=4)

    def problems_with(changed: TrainConfig) -> tuple[Problem, ...]:
        return small_plan(changed, sizes=((64, 64),) * 6).warnings

    plan = small_plan(config, sizes=((64, 64),) * 6)
    fixes = {fix.problem.where: fix.values for fix in find_fixes(config, plan.warnings, problems_with, plan)}
    assert fixes["gradient_accumulation"] == {"gradient_accumulation": 3}, "an epoch has 6 forward passes"


def test_a_list_that_grows_is_said_to_grow_and_a_long_one_is_not_spelt_out() -> None:
    """The label stands on a button: all prompts of a dataset do not fit there."""
    remedy = (("sample_prompts", ("old", "# concept", "zkw", "zkw, hat", "# control", "fox")),)
    problem = Problem("hint", "sample_prompts", "whatever", remedy)

    def problems_with(changed: TrainConfig) -> tuple[Problem, ...]:
        return () if len(changed.sample_prompts) == 6 else (problem,)

    for present, label in [
        (("old",), "Add “zkw” and 2 more to sample prompts"),
        (("old", "# concept", "zkw", "zkw, hat"), "Add “fox” to sample prompts"),
        ((), "Set sample prompts to “old” and 3 more"),
        (("other",), "Set sample prompts to “old” and 3 more"),
    ]:
        (fix,) = find_fixes(TrainConfig(sample_prompts=present), (problem,), problems_with)
        assert fix.label == label
