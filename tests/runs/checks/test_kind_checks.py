"""What a model's kind says about settings, in its own numbers."""

from __future__ import annotations

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.models.architecture import Architecture, ModelSpec
from lib_lora_train.runs.checks.kind_checks import kind_problems


@pytest.mark.parametrize(
    ("architecture", "step", "expected"),
    [
        ("sd1", 64, ""),
        ("sd1", 32, "warning"),
        ("sd2", 32, "warning"),
        ("sdxl", 32, ""),
        ("sdxl", 16, "warning"),
        ("anima", 16, ""),
        ("anima", 48, ""),
        ("anima", 24, "error"),
        ("anima", 8, "error"),
    ],
)
def test_the_step_of_buckets_is_judged_by_the_model(architecture: Architecture, step: int, expected: str) -> None:
    """A step of 16 suits Anima, and SD1's halved latents are no concern of it."""
    spec = ModelSpec(architecture, "rectified_flow", False, 1.0, {}, {}, ())
    found = [p for p in kind_problems(spec, TrainConfig(bucket_step=step)) if p.where == "bucket_step"]
    assert [problem.level for problem in found] == ([expected] if expected else [])
    assert all(("halves" in problem.message) == (architecture != "anima") for problem in found)
    for problem in found:
        better = TrainConfig(bucket_step=step).replace_at(dict(problem.remedy))
        assert not [p for p in kind_problems(spec, better) if p.where == "bucket_step"]
