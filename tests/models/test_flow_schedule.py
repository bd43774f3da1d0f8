"""Rectified flow: the straight line from image to noise, compared with diffusers and closed forms."""

from __future__ import annotations

import pytest
import torch

from lib_lora_train.models.diffusion_model import ModelOverrides, with_overrides
from lib_lora_train.models.noise_schedule import (
    DiffusionSchedule,
    FlowSchedule,
    add_noise,
    prediction_target,
    scaled_linear_schedule,
    schedule_for,
    shifted,
    snr,
)
from tests.stand_ins.tiny_models import tiny_model, tiny_spec, tiny_tensors

FLOW = FlowSchedule()
LATENTS = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TIMESTEPS = torch.tensor([0.5, 250.0, 617.25, 1000.0], dtype=torch.float64)
SIGMAS = TIMESTEPS.view(-1, 1, 1, 1) / 1000
FLOAT64 = 1e-12
FLOAT32_SIGMAS = 1e-6  # diffusers keeps its σ in float32


def test_noisy_latents_and_target_are_the_definition() -> None:
    """x_t = (1 − σ)·x₀ + σ·noise, and its derivative by σ is what is predicted."""
    noisy, target = add_noise(FLOW, LATENTS, NOISE, TIMESTEPS), prediction_target(FLOW, LATENTS, NOISE, TIMESTEPS)
    torch.testing.assert_close(noisy, (1 - SIGMAS) * LATENTS + SIGMAS * NOISE, rtol=0, atol=FLOAT64)
    torch.testing.assert_close(target, NOISE - LATENTS, rtol=0, atol=0)
    further = add_noise(FLOW, LATENTS, NOISE, TIMESTEPS - 0.5)
    torch.testing.assert_close((noisy - further) / 0.0005, target, rtol=0, atol=1e-9)  # a quotient of 5e-4


def test_the_last_timestep_is_pure_noise() -> None:
    last = torch.tensor([1000.0] * 4)
    assert torch.equal(add_noise(FLOW, LATENTS, NOISE, last), NOISE)
    assert snr(FLOW, last).tolist() == [0.0] * 4


def test_noisy_latents_match_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler()
    timesteps = theirs.timesteps[torch.tensor([0, 10, 500, 999])]  # 1000, 990, 500, 1
    expected = theirs.scale_noise(LATENTS, timesteps, NOISE)
    torch.testing.assert_close(add_noise(FLOW, LATENTS, NOISE, timesteps), expected, rtol=0, atol=5 * FLOAT32_SIGMAS)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_shares_match_diffusers_and_keep_the_ends(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.tolist()
    ours = [shifted(number / 1000, shift) for number in range(1000, 0, -1)]
    assert ours == pytest.approx(theirs[:1000], abs=FLOAT32_SIGMAS)
    assert (shifted(0.0, shift), shifted(1.0, shift)) == (0.0, 1.0)


def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square() -> None:
    plain, moved = (torch.tensor([1000 * shifted(0.3, shift)], dtype=torch.float64) for shift in (1.0, 2.5))
    assert float(snr(FLOW, plain) / snr(FLOW, moved)) == pytest.approx(2.5**2, rel=FLOAT64)


def test_measures_see_as_much_noise_as_on_stable_diffusion() -> None:
    sd = scaled_linear_schedule("epsilon")
    for timestep in (60, 100, 500):
        ours = torch.tensor([FLOW.as_noisy_as(timestep)], dtype=torch.float64)
        assert float(snr(FLOW, ours)) == pytest.approx(float(snr(sd, torch.tensor([timestep]))), rel=1e-9)
        assert sd.as_noisy_as(timestep) == timestep


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 16, 1, 8, 8)], ids=["image", "with frames"])
def test_results_have_the_latents_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    latents, noise = torch.ones(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    noisy = add_noise(FLOW, latents, noise, torch.tensor([250.0, 500.0]))
    assert (noisy.dtype, noisy.shape) == (dtype, shape)
    assert noisy.flatten(1)[:, 0].tolist() == [0.75, 0.5]
    assert prediction_target(FLOW, latents, noise, TIMESTEPS[:2]).dtype == dtype


def test_a_rectified_flow_has_no_zero_terminal_snr() -> None:
    tensors = tiny_tensors("sdxl", shallow=True)
    spec = tiny_spec(tensors, prediction_type="rectified_flow", zero_terminal_snr=True)
    assert not spec.zero_terminal_snr
    assert isinstance(schedule_for(spec), FlowSchedule)


@pytest.mark.parametrize("snr_switch", ["auto", "on", "off"])
def test_the_user_can_turn_any_model_into_a_flow_and_back(snr_switch: str) -> None:
    model = tiny_model("sd1")
    flow = with_overrides(model, ModelOverrides("rectified_flow", snr_switch))
    assert flow.spec.prediction_type == flow.schedule.prediction_type == "rectified_flow"
    assert isinstance(flow.schedule, FlowSchedule) and not flow.spec.zero_terminal_snr
    back = with_overrides(flow, ModelOverrides("epsilon"))
    assert isinstance(back.schedule, DiffusionSchedule) and isinstance(model.schedule, DiffusionSchedule)
    assert torch.equal(back.schedule.alphas_cumprod, model.schedule.alphas_cumprod)
