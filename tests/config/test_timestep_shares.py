"""The closed form of the drawn timesteps, which the page shows, against the draws themselves."""

from __future__ import annotations

from typing import Any

import pytest

from lib_lora_train.config.timestep_shares import share_below, timestep_at, timestep_shares
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.models.noise_schedule import FlowSchedule
from lib_lora_train.training.noise import draw_timestep, timestep_options

DRAWS = 10_000
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"timestep_shift": 3.0},
    {"timestep_shift": 0.5, "min_timestep": 200, "max_timestep": 700},
    {"timestep_sampling": "sigmoid"},
    {"timestep_sampling": "sigmoid", "sigmoid_mean": -0.2, "sigmoid_scale": 1.5, "timestep_shift": 2.5},
    {"timestep_sampling": "sigmoid", "min_timestep": 500},
    {"timestep_sampling": "sigmoid", "resolution_shift": "flux", "resolution": 1024},
    {"resolution_shift": "qwen", "timestep_shift": 1.5, "resolution": 768},
)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_chart_shows_what_is_drawn(settings: dict[str, Any]) -> None:
    """Pearson's statistic of ten ranges; its limit at p = 0.001 is 27.9 for 9 degrees of freedom, less for fewer."""
    config = TrainConfig().replace(**settings)
    options = timestep_options(config, FlowSchedule(), config.resolution // 8, config.resolution // 8)
    drawn = [draw_timestep(1, number, options) for number in range(DRAWS)]
    shares = timestep_shares(config, 10)
    counts = [sum(100 * n < timestep <= 100 * (n + 1) for timestep in drawn) for n in range(10)]
    assert sum(shares) == pytest.approx(1) and sum(counts) == DRAWS
    assert all(counts[n] == 0 for n in range(10) if shares[n] == 0)
    pairs = [(count, DRAWS * share) for count, share in zip(counts, shares, strict=True) if share]
    assert sum((count - expected) ** 2 / expected for count, expected in pairs) < 27.9


def test_uniform_draws_fall_equally_often_into_equal_parts() -> None:
    """Exact but for rounding: the parts divide 0 to 1000."""
    assert timestep_shares(TrainConfig(), 4) == pytest.approx((0.25, 0.25, 0.25, 0.25), rel=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_timesteps_and_shares_are_inverse(settings: dict[str, Any]) -> None:
    config = TrainConfig().replace(**settings)
    for share in (0.01, 0.25, 0.5, 0.9):
        assert share_below(config, timestep_at(config, share)) == pytest.approx(share)
