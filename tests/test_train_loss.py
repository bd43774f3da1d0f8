"""Promises of train/loss.py, against closed forms in float64 and diffusers' formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lib_lora_train.models.family import PredictionType
from lib_lora_train.models.schedule import NoiseSchedule, rescale_zero_terminal_snr, scaled_linear_schedule, snr
from lib_lora_train.train.loss import min_snr_weight, sample_weights, squared_error, weighted_sum

KINDS: tuple[PredictionType, ...] = ("epsilon", "v_prediction")


def test_squared_error_is_the_mean_per_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = [torch.nn.functional.mse_loss(a, b) for a, b in zip(one, other, strict=True)]
    assert torch.allclose(squared_error(one, other), torch.stack(expected), rtol=1e-14)


def test_half_precision_errors_are_computed_in_float32() -> None:
    prediction = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)  # 300² overflows float16
    assert squared_error(prediction, torch.zeros_like(prediction)).tolist() == [90_000.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_papers(kind: PredictionType, gamma: float) -> None:
    values = snr(scaled_linear_schedule(kind), torch.arange(1000))
    divisor = values if kind == "epsilon" else values + 1
    expected = torch.minimum(values, torch.tensor(gamma, dtype=torch.float64)) / divisor
    assert torch.allclose(min_snr_weight(values, gamma, kind), expected, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights_equal_diffusers(kind: PredictionType) -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    timesteps = torch.arange(0, 1000, 7)
    theirs = compute_snr(scheduler, timesteps)
    expected = torch.minimum(theirs, torch.full_like(theirs, 5.0)) / (theirs if kind == "epsilon" else theirs + 1)
    ours = min_snr_weight(snr(scaled_linear_schedule(kind), timesteps), 5.0, kind)
    assert torch.allclose(ours.float(), expected, rtol=2e-4)  # their table is a float32 product of 1000 factors


def test_gamma_zero_weighs_all_alike() -> None:
    assert min_snr_weight(torch.tensor([0.0, 3.0, 900.0]), 0.0, "epsilon").tolist() == [1.0, 1.0, 1.0]


def test_zero_terminal_weights_are_finite_and_of_the_rescaled_schedule() -> None:
    alphas = rescale_zero_terminal_snr(scaled_linear_schedule("v_prediction").alphas_cumprod)
    values = snr(NoiseSchedule(alphas, "v_prediction"), torch.tensor([0, 500, 999]))
    assert values[-1] == 0
    assert min_snr_weight(values, 5.0, "epsilon")[-1] == 1.0
    weights = min_snr_weight(values, 5.0, "v_prediction")
    assert weights[-1] == 0.0
    expected = float(alphas[500] / (1 - alphas[500]))
    assert float(weights[1]) == pytest.approx(min(expected, 5.0) / (expected + 1), rel=1e-12)


def test_prior_weight_counts_for_regularisation_samples_only() -> None:
    losses = torch.tensor([2.0, 4.0])
    weights = sample_weights(torch.tensor([1.0, 0.5]), torch.tensor([1.0, 1.0]), gamma=0.0, prediction_type="epsilon")
    assert float(weighted_sum(losses, weights)) == 4.0
