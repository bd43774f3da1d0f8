"""Noise schedules, compared with diffusers and closed forms."""

from __future__ import annotations

import pytest
import torch

from lib_lora_train.models.architecture import PredictionType
from lib_lora_train.models.noise_schedule import (
    DiffusionSchedule,
    add_noise,
    prediction_target,
    rescale_zero_terminal_snr,
    scaled_linear_schedule,
    schedule_for,
    snr,
)
from tests.stand_ins.tiny_models import tiny_spec, tiny_tensors

# diffusers keeps its table in float32: a thousand products with 6e-8 relative error each, in practice under 1e-5.
FLOAT32_TABLE = 2e-5
LATENTS = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
TIMESTEPS = torch.tensor([0, 10, 500, 999])


def test_schedule_matches_stable_diffusion() -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    ours = scaled_linear_schedule("epsilon").alphas_cumprod
    assert ours.dtype == torch.float64 and len(ours) == 1000
    torch.testing.assert_close(ours, theirs.double(), rtol=FLOAT32_TABLE, atol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_target_match_diffusers(prediction_type: PredictionType) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ours = scaled_linear_schedule(prediction_type)
    noisy = theirs.add_noise(LATENTS, NOISE, TIMESTEPS)
    torch.testing.assert_close(add_noise(ours, LATENTS, NOISE, TIMESTEPS), noisy, rtol=0, atol=FLOAT32_TABLE)
    expected = NOISE if prediction_type == "epsilon" else theirs.get_velocity(LATENTS, NOISE, TIMESTEPS)
    torch.testing.assert_close(prediction_target(ours, LATENTS, NOISE, TIMESTEPS), expected, rtol=0, atol=FLOAT32_TABLE)


def test_image_and_noise_can_be_recovered_from_x_and_v() -> None:
    """x₀ = √ᾱ·x_t − √(1−ᾱ)·v and ε = √(1−ᾱ)·x_t + √ᾱ·v (Salimans & Ho 2022, appendix D); float64: exact to 1e-12."""
    schedule = scaled_linear_schedule("v_prediction")
    latents, noise = LATENTS.double(), NOISE.double()
    x, v = add_noise(schedule, latents, noise, TIMESTEPS), prediction_target(schedule, latents, noise, TIMESTEPS)
    alphas = schedule.alphas_cumprod[TIMESTEPS].view(-1, 1, 1, 1)
    torch.testing.assert_close(alphas.sqrt() * x - (1 - alphas).sqrt() * v, latents, rtol=0, atol=1e-12)
    torch.testing.assert_close((1 - alphas).sqrt() * x + alphas.sqrt() * v, noise, rtol=0, atol=1e-12)


def test_zero_terminal_rescaling_matches_the_paper() -> None:
    from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr as reference

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - reference(betas), dim=0)
    before = scaled_linear_schedule("v_prediction").alphas_cumprod
    after = rescale_zero_terminal_snr(before)
    assert after[-1] == 0
    torch.testing.assert_close(after[0], before[0], rtol=1e-12, atol=0)  # float64 rounding
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-15)  # theirs goes through quotients and back


def test_pure_noise_at_the_zero_terminal_step() -> None:
    tensors = tiny_tensors("sdxl", shallow=True)
    schedule = schedule_for(tiny_spec(tensors, prediction_type="v_prediction", zero_terminal_snr=True))
    last = torch.tensor([999] * 4)
    assert torch.equal(add_noise(schedule, LATENTS, NOISE, last), NOISE)
    assert torch.equal(prediction_target(schedule, LATENTS, NOISE, last), -LATENTS)
    assert snr(schedule, last).tolist() == [0.0] * 4


def test_snr_is_signal_over_noise() -> None:
    schedule = DiffusionSchedule(torch.tensor([0.9, 0.5], dtype=torch.float64), "epsilon")
    torch.testing.assert_close(snr(schedule, torch.tensor([1, 0])), torch.tensor([1.0, 9.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_have_the_latents_dtype(dtype: torch.dtype) -> None:
    schedule = scaled_linear_schedule("v_prediction")
    latents, noise = LATENTS.to(dtype), NOISE.to(dtype)
    assert add_noise(schedule, latents, noise, TIMESTEPS).dtype == dtype
    assert prediction_target(schedule, latents, noise, TIMESTEPS).dtype == dtype
