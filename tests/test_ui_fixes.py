"""A fix is offered only where it mends its problem and makes no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config import TrainConfig
from lib_lora_train.errors import Problem
from lib_lora_train.judge import judge
from lib_lora_train.ui.fixes import fixes_of
from ui_stand_ins import small_config


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"optimizer": "Prodigy", "learning_rate": 1e-4}, "Set learning rate to 1"),
        ({"resolution": 100}, "Set resolution to 64"),
        ({"bucket_step": 12}, "Set bucket step to 64"),
        ({"enable_buckets": False, "bucket_no_upscale": True}, "Set bucket no upscale to off"),
    ],
)
def test_a_fix_mends_its_problem_and_makes_no_other(values: dict[str, Any], label: str) -> None:
    config = small_config(Path("/set")).replace(**values)
    before = judge(config)
    (fix,) = [fix for fix in fixes_of(config, before, judge) if fix.label == label]
    after = judge(config.replace(**{fix.name: fix.value}))
    assert fix.problem not in after
    assert {p for p in after if p.level == "error"} <= set(before)


def test_nothing_is_offered_where_no_value_helps() -> None:
    stubborn = Problem("warning", "rank", "whatever")
    assert fixes_of(TrainConfig(), (stubborn,), lambda _: (stubborn,)) == ()


def test_nothing_is_offered_that_would_stand_against_starting() -> None:
    warning, error = Problem("warning", "rank", "too small"), Problem("error", "alpha", "does not fit")
    assert fixes_of(TrainConfig(rank=1), (warning,), lambda c: (warning,) if c.rank == 1 else (error,)) == ()


def test_a_batch_size_that_fills_all_batches_is_found() -> None:
    def fitting(config: TrainConfig) -> tuple[Problem, ...]:
        return (Problem("hint", "batch_size", f"{12 % config.batch_size} missing"),) if 12 % config.batch_size else ()

    config = TrainConfig(batch_size=8)
    (fix,) = fixes_of(config, fitting(config), fitting)
    assert fix.value == 6
