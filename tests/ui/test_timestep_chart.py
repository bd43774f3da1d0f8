"""The chart of the drawn timesteps."""

from __future__ import annotations

import re

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.ui.timestep_chart import timestep_chart


def heights(config: TrainConfig) -> list[float]:
    return [float(height) for height in re.findall(r"height='([\d.]+)'", timestep_chart(config))]


def test_uniform_timesteps_are_bars_of_one_height() -> None:
    assert len(set(heights(TrainConfig()))) == 1 and len(heights(TrainConfig())) == 50
    assert "Half of the draws are from 250 to 750, half below 500." in timestep_chart(TrainConfig())


def test_a_shift_towards_noise_grows_to_the_right() -> None:
    bars = heights(TrainConfig(timestep_shift=3.0))
    assert bars == sorted(bars) and bars[-1] == 48
    assert "half below 750" in timestep_chart(TrainConfig(timestep_shift=3.0))


def test_nothing_is_drawn_outside_the_range_and_an_empty_range_has_no_chart() -> None:
    bars = heights(TrainConfig(min_timestep=500, timestep_sampling="sigmoid"))
    assert not any(bars[:25]) and all(bars[26:])
    assert timestep_chart(TrainConfig(min_timestep=500, max_timestep=400)) == ""
