"""Samplers on a rectified flow: compared with diffusers and with images of which the exact path is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.models.diffusion_model import DiffusionModel, ModelOverrides, with_overrides
from lib_lora_train.models.noise_schedule import FlowSchedule, scaled_linear_schedule
from lib_lora_train.sampling.sample import sample_images
from lib_lora_train.sampling.sampler_options import SamplerOptions
from lib_lora_train.sampling.samplers import (
    Sampling,
    expected_image,
    flow_ancestral_split,
    network_input,
    sample_euler,
    sample_euler_ancestral,
    sigma_levels,
)
from tests.stand_ins.tiny_models import tiny_model

FLOW = FlowSchedule()
START = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGE = torch.linspace(-1, 1, 256, dtype=torch.float64).view(1, 4, 8, 8)
FLOAT32 = 2e-6  # diffusers keeps σ and x in float32


def direction(x: Tensor, sigma: float) -> Tensor:
    """A direction without meaning, but smooth: what a network might answer."""
    return torch.sin(3 * x) + sigma * x


def finished(sampling: Sampling) -> Tensor:
    while True:
        try:
            next(sampling)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_euler_matches_diffusers(steps: int, shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    levels = sigma_levels(FLOW, steps, shift=shift)
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=[1 - n / steps for n in range(steps)])
    assert levels.sigmas == pytest.approx(theirs.sigmas[:-1].tolist(), abs=1e-6)
    assert levels.timesteps == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)
    expected = START.clone()
    for timestep in theirs.timesteps:
        answer = direction(expected, float(timestep) / 1000)
        expected = theirs.step(answer, timestep, expected, return_dict=False)[0].double()

    def denoise(x: Tensor, index: int) -> Tensor:
        sigma = levels.sigmas[index]
        return expected_image(x, direction(network_input(x, sigma, "rectified_flow"), sigma), sigma, "rectified_flow")

    torch.testing.assert_close(finished(sample_euler(denoise, START, levels)), expected, rtol=0, atol=steps * FLOAT32)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("sampler", [sample_euler, sample_euler_ancestral], ids=["Euler", "Euler a"])
def test_a_straight_path_ends_at_its_image(sampler: Callable[..., Sampling], steps: int) -> None:
    levels = sigma_levels(FLOW, steps)
    extra = [lambda: torch.ones_like(START)] if sampler is sample_euler_ancestral else []
    found = finished(sampler(lambda x, index: IMAGE, START * levels.sigmas[0], levels, *extra))
    torch.testing.assert_close(found, IMAGE, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_fresh_noise_keeps_the_share_of_noise(eta: float) -> None:
    """After a step at σ′: (1 − σ′)·x₀ + σ′·noise. The image's share is exact, the two noises' variances add up."""
    start, end = 0.8, 0.6
    down, up = flow_ancestral_split(start, end, eta)
    scale = (1 - end) / (1 - down)
    assert scale * (1 - down) == pytest.approx(1 - end)
    assert (scale * down) ** 2 + up**2 == pytest.approx(end**2)
    assert (down == end and up == 0) if eta == 0 else (down < end and up > 0)
    assert flow_ancestral_split(0.2, 0.0, eta) == (0.0, 0.0)


def test_levels_start_at_pure_noise_and_are_never_rounded() -> None:
    """Webuis that hand whole timesteps to the UNet do not for a flow."""
    levels = sigma_levels(FLOW, 7)
    assert (levels.sigmas[0], levels.timesteps[0]) == (1.0, 1000.0)
    assert levels.quantized == levels
    assert sigma_levels(FlowSchedule(shift=3.0), 4) == sigma_levels(FLOW, 4, shift=3.0)
    diffusion = scaled_linear_schedule("epsilon")
    assert sigma_levels(diffusion, 4, shift=3.0) == sigma_levels(diffusion, 4)


# --- with a model -------------------------------------------------------------------------------

PROMPT = SamplePrompt("a cat", "", width=64, height=64, steps=4, cfg=3.0, seed=1)


def flow_model() -> DiffusionModel:
    return with_overrides(tiny_model("sd1"), ModelOverrides("rectified_flow"))


def draw(sampler: str, options: SamplerOptions | None = None) -> bytes:
    options = options or SamplerOptions()
    (image,) = sample_images(flow_model(), [PROMPT], sampler=sampler, clip_skip=1, sampler_options=options)
    return image.tobytes()


def test_ddim_is_euler() -> None:
    """Without noise, DDIM's step from σ to σ′ is (1 − σ′)·x₀ + σ′·ε: the same straight line."""
    assert draw("DDIM") == draw("Euler") != draw("Euler a")


def test_the_shift_of_the_webui_is_used() -> None:
    assert (
        draw("Euler", SamplerOptions(flow_shift=1.0)) == draw("Euler") != draw("Euler", SamplerOptions(flow_shift=3.0))
    )
