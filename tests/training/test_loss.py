"""Losses and their weights, against closed forms in float64 and diffusers' formulas."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.models.architecture import PredictionType
from lib_lora_train.models.noise_schedule import (
    DiffusionSchedule,
    add_noise,
    prediction_target,
    rescale_zero_terminal_snr,
    scaled_linear_schedule,
    snr,
)
from lib_lora_train.training.loss import (
    LossOptions,
    debiased_weight,
    huber,
    huber_bound,
    loss_options,
    min_snr_weight,
    noise_like_weight,
    sample_errors,
    sample_weights,
    smooth_l1,
    snr_weight,
    weighted_sum,
)

KINDS: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
ROUNDING = 1e-14  # float64, relative: a few operations


def zero_terminal(kind: PredictionType = "v_prediction") -> DiffusionSchedule:
    """Stable Diffusion's schedule, rescaled to end in pure noise."""
    return DiffusionSchedule(rescale_zero_terminal_snr(scaled_linear_schedule(kind).alphas_cumprod), kind)


def pairs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two different (3, 4, 5, 6) tensors."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return one, other


# --- the error of a sample ----------------------------------------------------------------------


def test_squared_error_is_the_mean_per_sample() -> None:
    one, other = pairs()
    expected = [torch.nn.functional.mse_loss(a, b) for a, b in zip(one, other, strict=True)]
    assert torch.allclose(sample_errors(one, other), torch.stack(expected), rtol=ROUNDING)


def test_absolute_error_is_the_mean_per_sample() -> None:
    one, other = pairs()
    expected = [torch.nn.functional.l1_loss(a, b) for a, b in zip(one, other, strict=True)]
    assert torch.allclose(sample_errors(one, other, "l1"), torch.stack(expected), rtol=ROUNDING)


@pytest.mark.parametrize("loss_type", ["huber", "smooth_l1"])
def test_bounded_errors_are_the_definition_with_each_samples_own_bound(loss_type: str) -> None:
    one, other = pairs()
    bounds = (0.05, 0.3, 1.0)
    found = sample_errors(one, other, loss_type, torch.tensor(bounds, dtype=torch.float64))
    for sample, c in enumerate(bounds):
        roots = ((one[sample] - other[sample]) ** 2 + c**2).sqrt() - c
        expected = 2 * (c if loss_type == "huber" else 1.0) * roots.mean()
        # the definition takes a difference of nearly equal numbers: a few digits of float64's sixteen are lost
        assert float(found[sample]) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
def test_masked_errors_are_the_mean_over_the_masks_area(loss_type: str) -> None:
    """Closed form: Σ m·e / (C·Σ m), e the error of each cell without a mask."""
    prediction, wanted = pairs()
    bound = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    masks = torch.rand(3, 1, 5, 6, generator=torch.Generator().manual_seed(1))
    masks[1] = 1.0
    found = sample_errors(prediction, wanted, loss_type, bound, masks=masks)
    for number in range(3):
        weighted, area = 0.0, 0.0
        for y, x in itertools.product(range(5), range(6)):
            cell = [part[number, :, y, x].view(1, 4, 1, 1) for part in (prediction, wanted)]
            weight = float(masks[number, 0, y, x])
            weighted += weight * float(sample_errors(cell[0], cell[1], loss_type, bound[number : number + 1]))
            area += weight
        assert float(found[number]) == pytest.approx(weighted / area, rel=1e-12)
    plain = sample_errors(prediction, wanted, loss_type, bound)
    assert float(found[1]) == pytest.approx(float(plain[1]), rel=1e-12)


def test_a_small_mask_counts_as_much_as_a_large_one() -> None:
    """The same error everywhere gives the same loss under every mask; sd-scripts' plain mean shrinks with the area."""
    prediction, wanted = torch.full((2, 4, 8, 8), 3.0), torch.zeros(2, 4, 8, 8)
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :1, :1], masks[1, :, :, :7] = 1.0, 1.0
    assert sample_errors(prediction, wanted, masks=masks).tolist() == [9.0, 9.0]


def test_an_empty_mask_gives_no_loss_and_no_nan() -> None:
    prediction = torch.ones(1, 4, 2, 2, requires_grad=True)
    loss = sample_errors(prediction, torch.zeros(1, 4, 2, 2), masks=torch.zeros(1, 1, 2, 2)).sum()
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0.0
    assert prediction.grad is not None and torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_bounded_errors_are_square_for_small_and_straight_for_large_differences() -> None:
    """To first order in (d/c)² and c/d: with a ratio of 1e4, 1e-8 and 1e-4."""
    c = torch.tensor(0.1, dtype=torch.float64)
    small, large = c * 1e-4, c * 1e4
    assert float(huber(small, c)) == pytest.approx(float(small**2), rel=1e-8)
    assert float(huber(large, c)) == pytest.approx(float(2 * c * large), rel=2e-4)
    assert float(smooth_l1(small, c)) == pytest.approx(float(small**2 / c), rel=1e-8)
    assert float(smooth_l1(-large, c)) == pytest.approx(float(2 * large), rel=2e-4)


@pytest.mark.parametrize("function", [huber, smooth_l1])
def test_bounded_errors_keep_their_digits_in_float32(function: Any) -> None:
    """d = 1e-4 beside c = 1: the difference of roots would be 0 in float32. Here a few units of 6e-8 are lost."""
    d, c = torch.tensor(1e-4), torch.tensor(1.0)
    assert float((d.square() + c.square()).sqrt() - c) == 0.0
    assert float(function(d, c)) == pytest.approx(float(function(d.double(), c.double())), rel=5e-7)


@pytest.mark.parametrize("function", [huber, smooth_l1])
def test_bounded_errors_gradients_are_the_derivatives(function: Any) -> None:
    d = torch.tensor([-30.0, -0.2, 0.0, 1e-3, 5.0], dtype=torch.float64, requires_grad=True)
    c = torch.tensor(0.3, dtype=torch.float64)
    function(d, c).sum().backward()
    scale = c if function is huber else torch.ones_like(c)
    expected = 2 * scale * d.detach() / (d.detach() ** 2 + c**2).sqrt()
    assert d.grad is not None
    assert torch.allclose(d.grad, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
def test_half_precision_errors_are_computed_in_float32(loss_type: str) -> None:
    prediction = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)  # 300² overflows float16
    found = sample_errors(prediction, torch.zeros_like(prediction), loss_type, torch.ones(1).double())
    expected = {"l2": 90_000.0, "l1": 300.0}.get(loss_type, 2 * (90_001.0**0.5 - 1))
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([expected], rel=1e-6)


# --- huber's bound ------------------------------------------------------------------------------


def bound(name: str, schedule: DiffusionSchedule, timesteps: Tensor) -> Tensor:
    rule = LossOptions("huber", name, 0.1)
    return huber_bound(rule, snr(schedule, timesteps), timesteps.double() / len(schedule))


@pytest.mark.parametrize("schedule", [scaled_linear_schedule("epsilon"), zero_terminal()], ids=["plain", "zero"])
def test_snr_bound_is_the_definition(schedule: DiffusionSchedule) -> None:
    timesteps = torch.arange(0, 999, 3)
    alphas = schedule.alphas_cumprod[timesteps]
    sigmas = ((1 - alphas) / alphas).sqrt()
    expected = (1 - 0.1) / (1 + sigmas) ** 2 + 0.1
    assert torch.allclose(bound("snr", schedule, timesteps), expected, rtol=1e-13)


def test_exponential_bound_goes_from_one_to_huber_c() -> None:
    schedule = scaled_linear_schedule("epsilon")
    found = bound("exponential", schedule, torch.tensor([0, 300, 500])).tolist()
    assert found == pytest.approx([1.0, 0.1**0.3, 0.1**0.5], rel=1e-13)


def test_constant_bound_is_huber_c() -> None:
    assert bound("constant", scaled_linear_schedule("epsilon"), torch.tensor([0, 999])).tolist() == [0.1, 0.1]


@pytest.mark.parametrize(("name", "expected"), [("constant", 0.3), ("exponential", 3.0 * 0.1**0.5), ("snr", None)])
def test_the_scale_multiplies_all_bounds_but_that_by_snr(name: str, expected: float | None) -> None:
    schedule, half = scaled_linear_schedule("epsilon"), torch.tensor([500])
    rule = LossOptions("huber", name, 0.1, huber_scale=3.0)
    found = float(huber_bound(rule, snr(schedule, half), half.double() / len(schedule)))
    plain = float(bound(name, schedule, half))
    assert found == pytest.approx(plain if expected is None else expected, rel=1e-13)


@pytest.mark.parametrize("name", ["snr", "exponential", "constant"])
def test_bounds_are_usable_at_pure_noise(name: str) -> None:
    found = bound(name, zero_terminal(), torch.tensor([999]))
    assert found.dtype == torch.float64
    # exponential: 0.1^0.999; the other two are huber_c exactly
    assert float(found) == pytest.approx(0.1, rel=3e-3 if name == "exponential" else 1e-15)


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_papers(kind: PredictionType, gamma: float) -> None:
    values = snr(scaled_linear_schedule(kind), torch.arange(1000))
    divisor = values if kind == "epsilon" else values + 1
    expected = torch.minimum(values, torch.tensor(gamma, dtype=torch.float64)) / divisor
    assert torch.allclose(min_snr_weight(values, gamma, kind), expected, rtol=ROUNDING)


def diffusers_snr(scheduler: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """Its SNR. Only this test needs diffusers' training_utils, which beside A1111's transformers 4.30 does not load."""
    try:
        from diffusers.training_utils import compute_snr
    except AttributeError as error:
        pytest.skip(f"diffusers.training_utils does not fit this transformers: {error}")
    values: Tensor = compute_snr(scheduler, timesteps)
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights_equal_diffusers(kind: PredictionType) -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    timesteps = torch.arange(0, 1000, 7)
    theirs = diffusers_snr(scheduler, timesteps)
    expected = torch.minimum(theirs, torch.full_like(theirs, 5.0)) / (theirs if kind == "epsilon" else theirs + 1)
    ours = min_snr_weight(snr(scaled_linear_schedule(kind), timesteps), 5.0, kind)
    assert torch.allclose(ours.float(), expected, rtol=2e-4)  # their table is a float32 product of 1000 factors


def test_gamma_zero_weighs_all_alike() -> None:
    assert min_snr_weight(torch.tensor([0.0, 3.0, 900.0]), 0.0, "epsilon").tolist() == [1.0, 1.0, 1.0]


def test_debiased_weight_for_noise_is_the_papers() -> None:
    """The whole of Stable Diffusion's schedule lies above the SNR from which the weight stops growing."""
    values = snr(scaled_linear_schedule("epsilon"), torch.arange(1000))
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    theirs = diffusers_snr(scheduler, torch.arange(1000)).double()
    assert torch.allclose(debiased_weight(values, "epsilon"), values**-0.5, rtol=ROUNDING)
    assert torch.allclose(debiased_weight(values, "epsilon"), theirs**-0.5, rtol=1e-4)  # their float32 table


def both_errors(schedule_of: Any) -> tuple[Tensor, Tensor, Tensor]:
    """|noise error|², |v error|² and SNR for one and the same wrong guess of the image, at several timesteps."""
    timesteps = torch.tensor([1, 200, 500, 800, 990])
    generator = torch.Generator().manual_seed(3)
    image, guess, noise = (torch.randn(5, 4, 6, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    schedule = schedule_of("v_prediction")
    noisy = add_noise(schedule, image, noise, timesteps)
    alphas = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    guessed_noise = (noisy - alphas.sqrt() * guess) / (1 - alphas).sqrt()
    noise_error = sample_errors(guessed_noise, noise)
    v_error = sample_errors(
        prediction_target(schedule, guess, guessed_noise, timesteps),
        prediction_target(schedule, image, noise, timesteps),
    )
    return noise_error, v_error, snr(schedule, timesteps)


SCHEDULES = pytest.mark.parametrize("schedule_of", [scaled_linear_schedule, zero_terminal], ids=["plain", "zero"])


@SCHEDULES
def test_v_errors_are_scaled_to_the_noise_errors_of_the_same_guess(schedule_of: Any) -> None:
    noise_error, v_error, values = both_errors(schedule_of)
    # the guess's noise is a difference of large numbers at the clean end: 1e-10 of float64 remains
    assert torch.allclose(v_error * noise_like_weight(values), noise_error, rtol=1e-10)


@SCHEDULES
def test_v_pred_like_adds_the_v_error_of_the_same_guess(schedule_of: Any) -> None:
    """But below SNR 1/256, which only a rescaled schedule has, where the weight stops growing."""
    noise_error, v_error, values = both_errors(schedule_of)
    usual = values > 1 / 256
    weighted = noise_error * snr_weight(values, LossOptions(v_pred_like=0.4), "epsilon")
    assert int(usual.sum()) >= 4
    assert torch.allclose(weighted[usual], (noise_error + 0.4 * v_error)[usual], rtol=1e-10)


@SCHEDULES
def test_debiased_estimation_is_one_objective_for_noise_and_v(schedule_of: Any) -> None:
    """The weight for v is not sd-scripts' 1 / (SNR + 1), which would be another objective than the paper's."""
    noise_error, v_error, values = both_errors(schedule_of)
    usual = values > 1 / 256
    for_noise = noise_error * debiased_weight(values, "epsilon")
    for_v = v_error * debiased_weight(values, "v_prediction")
    assert torch.allclose(for_v[usual], for_noise[usual], rtol=1e-10)


def test_zero_terminal_weights_are_finite_and_of_the_rescaled_schedule() -> None:
    schedule = zero_terminal()
    values = snr(schedule, torch.tensor([0, 500, 999]))
    assert values[-1] == 0
    assert min_snr_weight(values, 5.0, "epsilon")[-1] == 1.0
    weights = min_snr_weight(values, 5.0, "v_prediction")
    assert weights[-1] == 0.0
    alphas = schedule.alphas_cumprod
    expected = float(alphas[500] / (1 - alphas[500]))
    assert float(weights[1]) == pytest.approx(min(expected, 5.0) / (expected + 1), rel=1e-12)
    assert float(debiased_weight(values, "v_prediction")[1]) == pytest.approx(expected**0.5 / (expected + 1), rel=1e-12)


EVERY_RULE = (
    LossOptions(min_snr_gamma=5.0),
    LossOptions(is_debiased=True),
    LossOptions(scale_v_like_noise=True),
    LossOptions(v_pred_like=10.0),
    LossOptions(min_snr_gamma=1.0, is_debiased=True, scale_v_like_noise=True, v_pred_like=1.0),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", EVERY_RULE, ids=["min-snr", "debiased", "scaled-v", "v-like", "all"])
def test_weights_are_finite_at_every_timestep_of_a_zero_terminal_schedule(
    rule: LossOptions, kind: PredictionType
) -> None:
    values = snr(zero_terminal(kind), torch.arange(1000))
    weights = sample_weights(torch.ones(1000), values, rule, kind)
    assert bool(torch.isfinite(weights).all()) and bool((weights >= 0).all())


def test_weights_are_limited_at_pure_noise_for_noise_prediction() -> None:
    nothing = torch.zeros(1, dtype=torch.float64)
    assert debiased_weight(nothing, "epsilon").tolist() == [16.0]
    assert snr_weight(nothing, LossOptions(v_pred_like=1.0), "epsilon").tolist() == pytest.approx([1 + 257.0])


def test_enabled_weights_are_multiplied() -> None:
    values = torch.tensor([0.5, 2.0, 40.0], dtype=torch.float64)
    rule = LossOptions(min_snr_gamma=5.0, is_debiased=True, v_pred_like=0.5)
    expected = min_snr_weight(values, 5.0, "epsilon") * (1 + 0.5 * (values + 1) / values) / values.sqrt()
    assert torch.allclose(snr_weight(values, rule, "epsilon"), expected, rtol=ROUNDING)


def test_v_errors_weighted_like_noise_errors_keep_their_other_weights() -> None:
    """SNR / (SNR + 1) times Min-SNR's min(SNR, γ) / (SNR + 1) times the debiased √SNR / (SNR + 1)."""
    values = torch.tensor([0.5, 2.0, 40.0], dtype=torch.float64)
    rule = LossOptions(min_snr_gamma=5.0, is_debiased=True, scale_v_like_noise=True)
    expected = torch.tensor([0.5, 2.0, 5.0]).double() * values**1.5 / (values + 1) ** 3
    assert torch.allclose(snr_weight(values, rule, "v_prediction"), expected, rtol=ROUNDING)


def test_prior_weight_applies_only_to_regularisation_samples() -> None:
    losses = torch.tensor([2.0, 4.0])
    weights = sample_weights(torch.tensor([1.0, 0.5]), torch.tensor([1.0, 1.0]), LossOptions(), "epsilon")
    assert float(weighted_sum(losses, weights)) == 4.0


# --- settings -----------------------------------------------------------------------------------


def test_settings_become_loss_options() -> None:
    config = TrainConfig(
        loss_type="huber",
        huber_schedule="constant",
        huber_c=0.2,
        huber_scale=2.0,
        min_snr_gamma=3.0,
        debiased_estimation=True,
        scale_v_pred_loss_like_noise_pred=True,
    )
    assert loss_options(config, "v_prediction") == LossOptions("huber", "constant", 0.2, 2.0, 3.0, True, True, 0.0)
    assert loss_options(TrainConfig(v_pred_like_loss=0.5), "epsilon").v_pred_like == 0.5
    assert loss_options(TrainConfig(), "epsilon") == LossOptions()


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("scale_v_pred_loss_like_noise_pred", True, "epsilon"), ("v_pred_like_loss", 0.5, "v_prediction")],
)
def test_a_loss_weight_for_another_prediction_type_is_rejected(name: str, value: Any, kind: PredictionType) -> None:
    with pytest.raises(ConfigError) as caught:
        loss_options(TrainConfig().replace(**{name: value}), kind)
    assert [problem.where for problem in caught.value.problems] == [name]
