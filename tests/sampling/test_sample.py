"""Samplers and sample images, against diffusers' schedulers with the same model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.models.architecture import Architecture, PredictionType
from lib_lora_train.models.noise_schedule import DiffusionSchedule, rescale_zero_terminal_snr, scaled_linear_schedule
from lib_lora_train.sampling import sample
from lib_lora_train.sampling.philox import PhiloxNoise
from lib_lora_train.sampling.sample import SamplingStep, sample_images, sample_in_steps
from lib_lora_train.sampling.sampler_options import SamplerOptions
from lib_lora_train.sampling.samplers import (
    NoiseLevels,
    Sampling,
    ancestral_split,
    ddim_timesteps,
    expected_image,
    sample_ddim,
    sample_euler,
    sample_euler_ancestral,
    sigma_levels,
)
from lib_lora_train.training.step import predict
from tests.stand_ins.training_parts import shared_model as model

KINDS: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def answer(x: Tensor, timestep: float) -> Tensor:
    """Replaces the UNet in both: a smooth function of image and timestep."""
    return torch.tanh(x.roll(1, dims=-1) * 0.7 + timestep / 1000) + 0.1 * x


def steps_of_diffusers(scheduler: Any, steps: int, x: Tensor) -> Tensor:
    """The sampling loop of diffusers' pipelines."""
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        x = scheduler.step(answer(scheduler.scale_model_input(x, timestep), float(timestep)), timestep, x).prev_sample
    return x


def zero_terminal(kind: PredictionType) -> DiffusionSchedule:
    """Stable Diffusion's schedule, rescaled."""
    return DiffusionSchedule(rescale_zero_terminal_snr(scaled_linear_schedule(kind).alphas_cumprod), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [7, 20, 50])
def test_ddim_equals_diffusers(kind: PredictionType, steps: int) -> None:
    scheduler = DDIMScheduler(**BETAS, prediction_type=kind, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    schedule = scaled_linear_schedule(kind)
    timesteps = ddim_timesteps(schedule, steps)
    ours = image_of(sample_ddim(lambda x, i: answer(x, timesteps[i]), START, schedule, timesteps))
    scheduler.set_timesteps(steps)
    assert timesteps == tuple(scheduler.timesteps.tolist())
    # their table of ᾱ is a float32 product of 1000 factors, off by 1e-5
    assert torch.allclose(ours, steps_of_diffusers(scheduler, steps, START), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [4, 20, 50])
def test_ddim_starts_a_zero_terminal_schedule_at_pure_noise(steps: int) -> None:
    scheduler = DDIMScheduler(
        **BETAS,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    schedule = zero_terminal("v_prediction")
    timesteps = ddim_timesteps(schedule, steps)
    assert timesteps[0] == 999
    ours = image_of(sample_ddim(lambda x, i: answer(x, timesteps[i]), START, schedule, timesteps))
    assert torch.allclose(ours, steps_of_diffusers(scheduler, steps, START), rtol=1e-3, atol=1e-3)


def image_of(sampling: Sampling) -> Tensor:
    """What a sampler returns after its steps."""
    while True:
        try:
            next(sampling)
        except StopIteration as end:
            image: Tensor = end.value
            return image


def run_euler(schedule: DiffusionSchedule, steps: int, sampler: Callable[..., Sampling], *extra: Any) -> Tensor:
    """A sampler in σ notation with `answer` as the model."""
    levels = sigma_levels(schedule, steps)

    def denoise(x: Tensor, index: int) -> Tensor:
        sigma = levels.sigmas[index]
        scaled = answer(x / (sigma**2 + 1) ** 0.5, levels.timesteps[index])
        return expected_image(x, scaled, sigma, schedule.prediction_type)

    return image_of(sampler(denoise, START * levels.sigmas[0], levels, *extra))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [4, 10, 28])
def test_euler_equals_diffusers(kind: PredictionType, steps: int) -> None:
    """At step counts whose timesteps are whole: between them diffusers interpolates σ, the webuis log σ."""
    scheduler = EulerDiscreteScheduler(**BETAS, prediction_type=kind, timestep_spacing="linspace")
    theirs = steps_of_diffusers(scheduler, steps, START)
    ours = run_euler(scaled_linear_schedule(kind), steps, sample_euler)
    # float32 sigmas on their side; the start is 14.6 times noise
    assert torch.allclose(ours, theirs.double(), rtol=1e-3, atol=2e-3)


def test_sigmas_span_stable_diffusions_range() -> None:
    """14.6146 to 0.0292: the numbers that k-diffusion's users know for this schedule."""
    sigmas = sigma_levels(scaled_linear_schedule("epsilon"), 10).sigmas
    assert (round(sigmas[0], 4), round(sigmas[-1], 4)) == (14.6146, 0.0292)


def test_sigmas_between_timesteps_are_log_linear() -> None:
    alphas = scaled_linear_schedule("epsilon").alphas_cumprod
    sigmas = ((1 - alphas) / alphas).sqrt()
    levels = sigma_levels(scaled_linear_schedule("epsilon"), 3)
    assert levels.timesteps == (999.0, 499.5, 0.0)
    assert levels.sigmas[1] == pytest.approx(float((sigmas[499] * sigmas[500]).sqrt()), rel=1e-12)


def test_zero_terminal_sigmas_start_at_the_webuis_number() -> None:
    sigmas = sigma_levels(zero_terminal("v_prediction"), 10).sigmas
    assert sigmas[0] == pytest.approx(4518.764, rel=1e-4)
    assert all(torch.isfinite(torch.tensor(sigmas)))


def test_ancestral_steps_keep_the_variance() -> None:
    for start, end in ((14.6, 8.3), (1.0, 0.5), (0.03, 0.0)):
        down, up = ancestral_split(start, end)
        assert down**2 + up**2 == pytest.approx(end**2)
        assert 0 <= down <= end


def test_euler_ancestral_recovers_a_known_image() -> None:
    """With a perfect denoiser every sampler must arrive at the image itself."""
    image = torch.full((1, 4, 8, 8), 0.3, dtype=torch.float64)
    levels = sigma_levels(scaled_linear_schedule("epsilon"), 6)
    generator = torch.Generator().manual_seed(1)

    def noise() -> Tensor:
        return torch.randn(image.shape, generator=generator, dtype=torch.float64)

    result = image_of(sample_euler_ancestral(lambda x, i: image, image + noise() * levels.sigmas[0], levels, noise))
    assert torch.allclose(result, image, atol=1e-12)


# --- whole images -----------------------------------------------------------------------------


PROMPT = SamplePrompt("a cat", "", 64, 64, seed=1, steps=2, cfg=3.0)


def pixels(prompts: list[SamplePrompt], sampler: str = "Euler a", architecture: Architecture = "sd1") -> list[bytes]:
    """The images' bytes."""
    return [p.tobytes() for p in sample_images(model(architecture), prompts, sampler=sampler, clip_skip=1)]


@pytest.mark.parametrize("sampler", ["DDIM", "Euler", "Euler a"])
@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
def test_every_sampler_works_on_every_architecture(architecture: Architecture, sampler: str) -> None:
    (image,) = sample_images(model(architecture), [replace(PROMPT, width=96)], sampler=sampler, clip_skip=1)
    assert image.size == (96, 64)
    assert len(set(image.tobytes())) > 20  # neither NaN, which would be black, nor flat


def test_images_are_in_order_whatever_their_sizes() -> None:
    widths = [64, 128, 64, 96]
    prompts = [replace(PROMPT, width=width) for width in widths]
    images = sample_images(model(), prompts, sampler="Euler", clip_skip=1)
    assert [image.width for image in images] == widths


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    alone = sample_images(model(), [PROMPT], sampler="Euler a", clip_skip=1)[0]
    crowd = [replace(PROMPT, prompt="a dog", seed=9), PROMPT, replace(PROMPT, cfg=1.0)]
    among = sample_images(model(), crowd, sampler="Euler a", clip_skip=1)[1]
    difference = max(abs(a - b) for a, b in zip(alone.tobytes(), among.tobytes(), strict=True))
    assert difference <= 1  # a matrix product rounds differently in another batch size


def test_seed_prompt_negative_and_clip_skip_matter() -> None:
    variants = [
        PROMPT,
        replace(PROMPT, seed=2),
        replace(PROMPT, prompt="a very long red dog"),
        replace(PROMPT, negative="grass"),
    ]
    assert len(set(pixels(variants))) == len(variants)
    skipped = sample_images(model(), [PROMPT], sampler="Euler a", clip_skip=2)[0].tobytes()
    assert skipped != pixels([PROMPT])[0]


def test_brackets_set_weights_as_in_the_webui() -> None:
    """(x) is 1.1, brackets themselves are not words, and a weight of 1 is the plain prompt, bit for bit."""
    plain = replace(PROMPT, prompt="a red dog")
    assert pixels([replace(plain, prompt="a (red:1.0) dog")]) == pixels([plain])
    assert pixels([replace(plain, prompt="a (red) dog")]) == pixels([replace(plain, prompt="a (red:1.1) dog")])
    assert pixels([replace(plain, prompt="a (red:1.8) dog")]) != pixels([plain])


def test_sampling_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    pixels([PROMPT])
    assert torch.equal(torch.rand(1), expected)


def test_philox_supplies_initial_and_later_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def sampler(denoise: Any, x: Tensor, levels: NoiseLevels, noise: Callable[[], Tensor], *, eta: float) -> Sampling:
        seen.extend((x / levels.sigmas[0], noise()))
        yield
        return x

    monkeypatch.setattr(sample, "sample_euler_ancestral", sampler)
    prompts = [replace(PROMPT, seed=seed) for seed in (3, 4)]
    sample_images(model("sd1"), prompts, sampler="Euler a", clip_skip=1, sampler_options=SamplerOptions("philox"))
    noises = [PhiloxNoise(3), PhiloxNoise(4)]
    shape = (4, PROMPT.height // 8, PROMPT.width // 8)
    for drawn in seen:
        # σ is multiplied and divided away again: one rounding each
        torch.testing.assert_close(drawn, torch.stack([noise.draw(shape) for noise in noises]), rtol=2**-22, atol=0)


@pytest.mark.parametrize("source", ["cpu", "philox"])
def test_the_seed_delta_applies_to_all_but_the_initial_noise(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The webuis' ENSD: after the first noise their generators start again at seed + delta."""
    drawn: list[Tensor] = []

    def sampler(denoise: Any, x: Tensor, levels: NoiseLevels, noise: Callable[[], Tensor], *, eta: float) -> Sampling:
        drawn.extend((x / levels.sigmas[0], noise(), noise()))
        yield
        return x

    def noises(seed: int) -> list[Tensor]:
        shape = (4, PROMPT.height // 8, PROMPT.width // 8)
        if source == "philox":
            philox = PhiloxNoise(seed)
            return [philox.draw(shape) for _ in range(2)]
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator) for _ in range(2)]

    monkeypatch.setattr(sample, "sample_euler_ancestral", sampler)
    sampler_options = SamplerOptions(source, eta_noise_seed_delta=31337)
    sample_images(model(), [replace(PROMPT, seed=3)], sampler="Euler a", clip_skip=1, sampler_options=sampler_options)
    for ours, theirs in zip(drawn, [noises(3)[0], *noises(3 + 31337)], strict=True):
        # σ is multiplied and divided away again: one rounding each
        torch.testing.assert_close(ours[0], theirs, rtol=2**-22, atol=0)


def test_quantized_timesteps_are_the_nearest_integers() -> None:
    """What Forge and its forks do: argmin |log σ − log σₜ| over all timesteps t."""
    schedule = scaled_linear_schedule("epsilon")
    levels = sigma_levels(schedule, 8)
    table = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).log() / 2
    nearest = [float((table - math.log(sigma)).abs().argmin()) for sigma in levels.sigmas]
    assert list(levels.quantized.timesteps) == nearest
    assert levels.quantized.sigmas == levels.sigmas and list(levels.timesteps) != nearest


def test_quantize_timesteps_gives_the_unet_integer_timesteps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def noted(on: Any, x: Tensor, timesteps: Tensor, *others: Any) -> Tensor:
        asked.append(float(timesteps[0]))
        return predict(on, x, timesteps, *others)

    monkeypatch.setattr(sample, "predict", noted)
    prompts = [replace(PROMPT, steps=3)]
    for whole in (False, True):
        sample_images(
            model(), prompts, sampler="Euler", clip_skip=1, sampler_options=SamplerOptions(quantize_timesteps=whole)
        )
    assert asked == [999.0, 499.5, 0.0, 999.0, 499.0, 0.0]


def test_skip_early_cond_turns_guidance_off_in_the_first_steps() -> None:
    """With a share of 0 it is the first step alone, as in Forge Classic; a share of 1 is a CFG scale of 1."""
    prompt = replace(PROMPT, negative="blurry", steps=3)

    def drawn(cfg: float = 3.0, share: float | None = None) -> bytes:
        sampler_options = SamplerOptions(skip_early_cond=share)
        (image,) = sample_images(
            model(), [replace(prompt, cfg=cfg)], sampler="Euler", clip_skip=1, sampler_options=sampler_options
        )
        return image.tobytes()

    assert len({drawn(), drawn(share=0.0), drawn(share=0.5)}) == 3
    assert drawn(cfg=2.999, share=1.0) == drawn(cfg=7.0, share=1.0)
    assert [SamplerOptions(skip_early_cond=0.25).is_guided(step, 8) for step in range(4)] == [False] * 3 + [True]
    assert SamplerOptions().is_guided(0, 8)


def test_ancestral_noise_is_scaled_by_eta() -> None:
    """k-diffusion's definition, σ_up = η·√(σ₂²(σ₁² − σ₂²)/σ₁²); without noise it is Euler's sampler."""
    for start, end, eta in ((14.6, 8.3, 0.5), (1.0, 0.5, 0.25)):
        down, up = ancestral_split(start, end, eta)
        assert up == pytest.approx(eta * end * math.sqrt(1 - (end / start) ** 2))
        assert down**2 + up**2 == pytest.approx(end**2)
    schedule = scaled_linear_schedule("epsilon")
    none = run_euler(schedule, 5, partial(sample_euler_ancestral, noise=lambda: START, eta=0.0))
    assert torch.allclose(none, run_euler(schedule, 5, sample_euler), rtol=0, atol=1e-12)  # float64


@pytest.mark.parametrize("steps", [4, 10])
def test_ddim_with_fresh_noise_equals_diffusers(steps: int) -> None:
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(5)
    noises = [torch.randn(START.shape, generator=generator, dtype=torch.float64) for _ in range(steps)]
    x = START
    for timestep, noise in zip(scheduler.timesteps, noises, strict=True):
        x = scheduler.step(answer(x, float(timestep)), int(timestep), x, eta=0.7, variance_noise=noise).prev_sample
    schedule = scaled_linear_schedule("epsilon")
    timesteps = ddim_timesteps(schedule, steps)
    later = iter(noises)
    ours = image_of(
        sample_ddim(
            lambda x, i: answer(x, timesteps[i]), START, schedule, timesteps, eta=0.7, noise=lambda: next(later)
        )
    )
    # their ᾱ, as above
    assert torch.allclose(ours, x, rtol=1e-3, atol=1e-3)


def test_every_step_of_every_image_is_reported_once() -> None:
    prompts = [PROMPT, replace(PROMPT, width=128, steps=3)]
    steps = list(sample_in_steps(model(), prompts, sampler="Euler", clip_skip=1))
    assert steps == [SamplingStep(0, 1, 1, 2), SamplingStep(0, 1, 2, 2), *(SamplingStep(1, 1, n, 3) for n in (1, 2, 3))]
