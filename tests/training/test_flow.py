"""Training on a rectified flow: which timesteps are drawn, how errors are weighted, and the step itself."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.prediction import prediction_problems
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.dataset.plan import MicroBatch
from lib_lora_train.models.architecture import Architecture
from lib_lora_train.models.diffusion_model import DiffusionModel, ModelOverrides, with_overrides
from lib_lora_train.models.noise_schedule import (
    FlowSchedule,
    prediction_target,
    scaled_linear_schedule,
    shifted,
    snr,
)
from lib_lora_train.training.loss import (
    LossOptions,
    debiased_weight,
    huber_bound,
    loss_options,
    min_snr_weight,
    sample_weights,
)
from lib_lora_train.training.noise import TimestepOptions, draw_timestep, timestep_options
from lib_lora_train.training.step import batch_loss, draw_batch
from lib_lora_train.training.text_conditions import TextConditions
from tests.stand_ins.training_parts import random_latents, shared_model, small_config, small_plan

FLOW = FlowSchedule()
COUNT = 10_000
FARTHEST = 1.95 / COUNT**0.5
"""Kolmogorov's limit for the distance of two cumulative distributions at p = 0.001."""
SIGMAS = torch.tensor([0.01, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
SNR = snr(FLOW, 1000 * SIGMAS)
ROUNDING = 1e-12


def farthest(drawn: list[float], law: NormalDist | None, shift: float) -> float:
    """The largest distance of the drawn shares' cumulative distribution from the closed form.

    t is uniform, or its logit is normal; σ = s·t / (1 + (s − 1)·t) means t = σ / (s − (s − 1)·σ), whose logit is that
    of σ less ln s.
    """

    def below(sigma: float) -> float:
        share = sigma / (shift - (shift - 1) * sigma)
        return law.cdf(math.log(sigma / (1 - sigma)) - math.log(shift)) if law else share

    return max(abs(below(sigma) - (n + 0.5) / len(drawn)) for n, sigma in enumerate(sorted(drawn)) if 0 < sigma < 1)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("law", [None, NormalDist(0.0, 1.0), NormalDist(-0.2, 1.5)], ids=["uniform", "01", "chenkin"])
@pytest.mark.parametrize(("first", "end"), [(0, 1000), (200, 700)])
def test_sigmas_have_the_chosen_distribution(law: NormalDist | None, shift: float, first: int, end: int) -> None:
    options = TimestepOptions(
        end, first, "sigmoid" if law else "uniform", law.stdev if law else 1, law.mean if law else 0, shift, True
    )
    drawn = [(draw_timestep(1, draw, options) - first) / (end - first) for draw in range(COUNT)]
    assert min(drawn) > 0 and max(drawn) <= 1
    assert len(set(drawn)) == COUNT  # real numbers, not the thousand of a table
    assert farthest(drawn, law, shift) < FARTHEST


@pytest.mark.parametrize("law", [None, NormalDist(0.0, 1.0)], ids=["uniform", "sigmoid"])
def test_a_shift_moves_the_timesteps_of_other_models_alike(law: NormalDist | None) -> None:
    options = TimestepOptions(1000, 0, "sigmoid" if law else "uniform", shift=3.0)
    drawn = [draw_timestep(1, draw, options) for draw in range(COUNT)]
    assert all(isinstance(timestep, int) and 0 <= timestep < 1000 for timestep in drawn)
    assert farthest([(timestep + 0.5) / 1000 for timestep in drawn], law, 3.0) < FARTHEST + 0.001  # cells of a table


def test_a_shift_keeps_the_order_of_the_draws() -> None:
    """Comparing two runs with the same seed compares the shift alone."""
    plain, moved = (
        [draw_timestep(1, draw, TimestepOptions(1000, shift=shift, is_real=True)) for draw in range(20)]
        for shift in (1.0, 3.0)
    )
    assert moved == pytest.approx([1000 * shifted(timestep / 1000, 3.0) for timestep in plain], rel=ROUNDING)


def test_settings_become_the_timestep_options_of_the_schedule() -> None:
    config = TrainConfig(timestep_sampling="sigmoid", sigmoid_mean=-0.2, sigmoid_scale=1.5, timestep_shift=2.5)
    assert timestep_options(config, FLOW) == TimestepOptions(1000, 0, "sigmoid", 1.5, -0.2, 2.5, True)
    assert not timestep_options(config, scaled_linear_schedule("epsilon")).is_real


# --- weights ------------------------------------------------------------------------------------


def test_weights_count_errors_of_the_image_as_for_other_predictions() -> None:
    """x₀ = x_t − σ·prediction, so an error of the image is σ times the flow's: the weight on it is divided by σ²."""
    image_min_snr, image_debiased = SNR.clamp(max=5.0), SNR.sqrt()
    torch.testing.assert_close(min_snr_weight(SNR, 5.0, "rectified_flow"), SIGMAS**2 * image_min_snr, rtol=1e-9, atol=0)
    torch.testing.assert_close(debiased_weight(SNR, "rectified_flow"), SIGMAS**2 * image_debiased, rtol=1e-9, atol=0)


def test_weights_are_their_closed_forms() -> None:
    closed = torch.minimum((1 - SIGMAS) ** 2, 5 * SIGMAS**2)
    torch.testing.assert_close(min_snr_weight(SNR, 5.0, "rectified_flow"), closed, rtol=1e-9, atol=ROUNDING)
    closed = SIGMAS * (1 - SIGMAS)
    torch.testing.assert_close(debiased_weight(SNR, "rectified_flow"), closed, rtol=1e-9, atol=ROUNDING)


def test_all_timesteps_count_alike_by_default() -> None:
    weights = sample_weights(torch.ones(5), SNR, LossOptions(), "rectified_flow")
    assert weights.tolist() == [1.0] * 5


def test_huber_thresholds_follow_sigma() -> None:
    """snr: (1 − c)·(1 − σ)² + c, since 1 + 1/√SNR = 1 / (1 − σ); exponential: c^σ."""
    by_snr = huber_bound(LossOptions("huber"), SNR, SIGMAS)
    torch.testing.assert_close(by_snr, 0.9 * (1 - SIGMAS) ** 2 + 0.1, rtol=1e-9, atol=0)
    by_time = huber_bound(LossOptions("huber", "exponential"), SNR, SIGMAS)
    torch.testing.assert_close(by_time, 0.1**SIGMAS, rtol=1e-9, atol=0)


# --- settings without a meaning -----------------------------------------------------------------

REFUSED = (
    {"noise_offset": 0.05},
    {"adaptive_noise_scale": 0.02},
    {"multires_noise_iterations": 6},
    {"scale_v_pred_loss_like_noise_pred": True},
    {"v_pred_like_loss": 0.5},
)


@pytest.mark.parametrize("settings", REFUSED, ids=[next(iter(one)) for one in REFUSED])
def test_settings_without_a_meaning_are_refused_with_a_remedy(settings: dict[str, object]) -> None:
    config, (name,) = TrainConfig().replace(**settings), settings
    with pytest.raises(ConfigError) as caught:
        loss_options(config, "rectified_flow")
    (problem,) = caught.value.problems
    assert problem.where == name and "rectified flow" in problem.message
    assert not list(prediction_problems(config.replace(**dict(problem.remedy)), "rectified_flow"))


@pytest.mark.parametrize("settings", [{"ip_noise_gamma": 0.1}, {"loss_type": "huber"}, {"min_timestep": 100}])
def test_settings_with_the_same_meaning_are_accepted_without_a_word(settings: dict[str, object]) -> None:
    assert not list(prediction_problems(TrainConfig().replace(**settings), "rectified_flow"))


@pytest.mark.parametrize("settings", [{"min_snr_gamma": 5.0}, {"debiased_estimation": True}])
def test_loss_weights_are_accepted_with_a_hint(settings: dict[str, object]) -> None:
    (problem,) = prediction_problems(TrainConfig().replace(**settings), "rectified_flow")
    assert problem.level == "hint" and problem.where in settings


# --- the step -----------------------------------------------------------------------------------


def flow_model(architecture: Architecture) -> DiffusionModel:
    return with_overrides(shared_model(architecture), ModelOverrides("rectified_flow"))


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_the_loss_is_the_error_of_the_direction_at_1000_sigma(architecture: Architecture) -> None:
    """The UNet gets (1 − σ)·x₀ + σ·noise and the time 1000·σ; it should answer noise − x₀."""
    config, leased = small_config(timestep_shift=2.5), flow_model(architecture)
    plan = small_plan(config)
    whole = MicroBatch(64, 64, (0, 1, 2, 3), (10, 11, 12, 13))
    batch = draw_batch(whole, plan, random_latents(plan), config=config, model=leased)
    assert batch is not None and batch.timesteps.dtype == torch.float64
    sigmas = (batch.timesteps / 1000).float().view(-1, 1, 1, 1)
    with torch.no_grad():
        condition = TextConditions(trained=False, clip_skip=1).encode(leased, batch.captions)
        answer = leased.unet(
            (1 - sigmas) * batch.latents + sigmas * batch.noise,
            1000 * sigmas.flatten(),
            encoder_hidden_states=condition.hidden,
            added_cond_kwargs=None
            if condition.pooled is None
            else {"text_embeds": condition.pooled, "time_ids": batch.sizes},
        ).sample
        loss = float(batch_loss(leased, batch, condition, LossOptions()))
    expected = (answer - (batch.noise - batch.latents)).square().flatten(1).mean(dim=1).sum()
    assert loss == pytest.approx(float(expected), rel=1e-5)  # float32: 1 − σ is rounded once more here


def test_input_perturbation_changes_the_input_only() -> None:
    config, leased = small_config(ip_noise_gamma=0.3), flow_model("sd1")
    plan = small_plan(config)
    batch = draw_batch(MicroBatch(64, 64, (0,), (3,)), plan, random_latents(plan), config=config, model=leased)
    assert batch is not None
    assert not torch.equal(batch.input_noise, batch.noise)
    target = prediction_target(leased.schedule, batch.latents, batch.noise, batch.timesteps)
    assert torch.equal(target, batch.noise - batch.latents)


def test_a_sample_of_a_flow_is_the_same_in_every_batch() -> None:
    config, leased = small_config(timestep_sampling="sigmoid"), flow_model("sd1")
    plan = small_plan(config)
    both, alone = (
        draw_batch(MicroBatch(64, 64, items, draws), plan, random_latents(plan), config=config, model=leased)
        for items, draws in (((0, 1), (4, 5)), ((1,), (5,)))
    )
    assert both is not None and alone is not None
    assert torch.equal(both.timesteps[1:], alone.timesteps) and torch.equal(both.noise[1:], alone.noise)
