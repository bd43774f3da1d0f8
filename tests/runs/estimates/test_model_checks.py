"""Warnings of a checkpoint and of a resolution for it: exactly where, and with settings that belong together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem
from lib_lora_train.hosts.host import RunTarget
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.runs.estimates.model_checks import check_model


def problems(
    side: int, *, own: int = 512, limits: tuple[int, int] = (256, 1024), path: str = "v1.ckpt"
) -> list[Problem]:
    """Those of a run at `side` px, with these bucket limits, on a model of `own` px."""
    config = TrainConfig(resolution=side, min_bucket=limits[0], max_bucket=limits[1])
    spec = ModelSpec("sd1", "epsilon", False, 0.18215, {}, {}, (), resolution=own)
    return list(check_model(config, spec, RunTarget(Path(path), False, 2, "cpu", None)))


@pytest.mark.parametrize(
    ("side", "is_far"), [(255, False), (256, True), (383, True), (384, False), (768, False), (769, True)]
)
def test_a_resolution_may_be_three_quarters_to_one_and_a_half_times_the_models_own(side: int, is_far: bool) -> None:
    """Below 256 px the model is a much smaller one than its file says."""
    found = problems(side)
    assert [problem.where for problem in found] == ["resolution"] * is_far
    effect = "repeats and distorts" if side > 512 else "learns a blur"
    assert all(effect in problem.message for problem in found)


@pytest.mark.parametrize(
    ("own", "limits", "remedy"),
    [
        (1024, (256, 512), {"max_bucket": 2048}),
        (3072, (256, 512), {"max_bucket": 4096}),
        (96, (256, 512), {"min_bucket": 64}),
        (256, (512, 1024), {"min_bucket": 128}),
        (256, (256, 1024), {}),
        (1024, (256, 1024), {}),
    ],
)
def test_the_models_own_resolution_comes_with_bucket_limits_that_allow_it(
    own: int, limits: tuple[int, int], remedy: dict[str, int]
) -> None:
    """Down to half and up to twice of it, where a limit does not allow it yet."""
    (problem,) = problems(512, own=own, limits=limits)
    assert dict(problem.remedy) == {"resolution": own, **remedy}
    assert all(isinstance(value, int) for _, value in problem.remedy)


@pytest.mark.parametrize(("key", "is_merge"), [("sd_merge_recipe", True), ("sd_merge_models", True), ("other", False)])
def test_merges_are_hinted_at_by_their_metadata(key: str, is_merge: bool, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "v1.safetensors", metadata={key: "{}"})
    assert [found.where for found in problems(512, path=str(tmp_path / "v1.safetensors"))] == ["checkpoint"] * is_merge
