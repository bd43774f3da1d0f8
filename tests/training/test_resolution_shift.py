"""The shift by resolution: diffusers' own calculation, for each image by its size."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from lib_lora_train.config.resolution_shift import shift_for, usual_shift
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.models.noise_schedule import FlowSchedule, shifted
from lib_lora_train.training.noise import draw_timestep, timestep_options

FLOW = FlowSchedule()
# The numbers in the scheduler's config of the published Flux.1 dev and Qwen-Image.
PUBLISHED = {
    "flux": {"base_seq_len": 256, "max_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15},
    "qwen": {"base_seq_len": 256, "max_seq_len": 8192, "base_shift": 0.5, "max_shift": 0.9},
}
SIZES = [(32, 32), (64, 64), (104, 152), (128, 128), (192, 192)]


@pytest.mark.parametrize("law", PUBLISHED)
@pytest.mark.parametrize("size", SIZES)
def test_the_shift_is_that_of_diffusers(law: str, size: tuple[int, int]) -> None:
    height, width = size
    mu = calculate_shift((height // 2) * (width // 2), **PUBLISHED[law])
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    config = TrainConfig(resolution_shift=law)
    for share in (0.01, 0.3, 0.5, 0.99):
        theirs = float(scheduler.time_shift(mu, 1.0, torch.tensor(share, dtype=torch.float64)))
        assert shifted(share, shift_for(config, height, width)) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("law", PUBLISHED)
def test_the_numbers_in_the_help_text_are_right(law: str) -> None:
    shown = {"flux": (1.65, 1.88, 3.16), "qwen": (1.65, 1.71, 2.0)}[law]
    for side, number in zip((256, 512, 1024), shown, strict=True):
        assert usual_shift(TrainConfig(resolution_shift=law, resolution=side)) == pytest.approx(number, abs=0.005)


def test_it_is_one_shift_together_with_timestep_shift() -> None:
    config = TrainConfig(resolution_shift="flux", timestep_shift=2.0)
    assert shift_for(config, 128, 128) == pytest.approx(2.0 * math.exp(1.15))
    assert shifted(shifted(0.3, 2.0), math.exp(1.15)) == pytest.approx(shifted(0.3, shift_for(config, 128, 128)))


def test_without_it_nothing_changes() -> None:
    config = TrainConfig(timestep_shift=2.5)
    assert shift_for(config, 128, 128) == shift_for(config, 8, 8) == 2.5
    assert timestep_options(config, FLOW, 128, 128) == timestep_options(config, FLOW)


def test_a_larger_image_is_drawn_with_more_noise_from_the_same_number() -> None:
    config = TrainConfig(resolution_shift="flux")
    small, large = (draw_timestep(1, 7, timestep_options(config, FLOW, side, side)) for side in (64, 128))
    assert large > small
