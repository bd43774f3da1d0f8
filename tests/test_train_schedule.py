"""Promises of train/schedule.py, against diffusers' schedules."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.optimization import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from lib_lora_train.train.schedule import lr_factor, warmup_steps

TOTAL = 40


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("kind", ["cosine", "constant"])
def test_factors_equal_diffusers(kind: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if kind == "cosine":
        scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, TOTAL)
    else:
        scheduler = get_constant_schedule_with_warmup(optimizer, warmup)
    for step in range(TOTAL):
        expected = optimizer.param_groups[0]["lr"]
        assert lr_factor(kind, step, total_steps=TOTAL, warmup=warmup) == pytest.approx(expected, abs=1e-15)
        optimizer.step()
        scheduler.step()


def test_cosine_is_half_a_period() -> None:
    assert lr_factor("cosine", 0, total_steps=TOTAL) == 1.0
    assert lr_factor("cosine", 10, total_steps=TOTAL) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert lr_factor("cosine", TOTAL, total_steps=TOTAL) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(("value", "steps"), [(0.0, 0), (0.05, 5), (0.999, 99), (1.0, 1), (30.0, 30)])
def test_warmup_is_a_share_below_one_and_steps_from_one_on(value: float, steps: int) -> None:
    assert warmup_steps(value, 100) == steps
