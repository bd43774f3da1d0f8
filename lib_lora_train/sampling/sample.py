"""Prompts to images with the model in its current state, with or without an adapter.

All noise comes from separate generators, one per prompt, seeded with the prompt's seed: an image does not depend on
training or on the other prompts of its batch, nor on the device if the noise is from the processor or Philox.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, repeat

import torch
from PIL import Image
from torch import Tensor

from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.core.generators import WithResult, result_of
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latents import decode_latents
from lib_lora_train.models.noise_schedule import DiffusionSchedule
from lib_lora_train.models.prompts import encode_prompts, prompt_chunks
from lib_lora_train.models.text_encoding import size_condition
from lib_lora_train.sampling.philox import PhiloxNoise
from lib_lora_train.sampling.sampler_options import NoiseSource, SamplerOptions
from lib_lora_train.sampling.samplers import (
    NoiseLevels,
    Sampling,
    ddim_timesteps,
    expected_image,
    network_input,
    sample_ddim,
    sample_euler,
    sample_euler_ancestral,
    sampler_for,
    sigma_levels,
)
from lib_lora_train.training.step import predict

DrawNoise = Callable[[tuple[int, ...]], Tensor]
"""Returns a seed's next standard normal numbers, a tensor of the given shape."""

WithinPass = Callable[[], AbstractContextManager[object]]
"""Returns a context that one pass of the UNet runs in."""

_DEFAULT_OPTIONS = SamplerOptions()
_PIXELS_PER_BATCH = 4 * 512 * 512
_BATCH_LIMIT = 16


@dataclass(frozen=True)
class SamplingStep:
    """One sampling step is done: `step` of `steps` of `at_once` images, after `finished` others."""

    finished: int
    at_once: int
    step: int
    steps: int


def sample_images(
    model: DiffusionModel,
    prompts: Sequence[SamplePrompt],
    *,
    sampler: str,
    clip_skip: int,
    sampler_options: SamplerOptions = _DEFAULT_OPTIONS,
) -> list[Image.Image]:
    """One RGB image per prompt, in their order; `sampler` is DDIM, Euler or Euler a."""
    return result_of(
        sample_in_steps(model, prompts, sampler=sampler, clip_skip=clip_skip, sampler_options=sampler_options)
    )


@torch.no_grad()
def sample_in_steps(
    model: DiffusionModel,
    prompts: Sequence[SamplePrompt],
    *,
    sampler: str,
    clip_skip: int,
    sampler_options: SamplerOptions = _DEFAULT_OPTIONS,
    within_pass: WithinPass = nullcontext,
) -> Generator[SamplingStep, None, list[Image.Image]]:
    """`sample_images`, yielding after every sampling step. The model is not in use while a step is yielded.

    Prompts of equal size, steps and length share a batch. Every pass of the UNet runs inside `within_pass()`; its
    batch has the prompts first, then the negative prompts.
    """
    images: dict[int, Image.Image] = {}
    for batch in _batches(model, prompts):
        of_batch = [prompts[index] for index in batch]
        sampling = _BatchSampling(
            model, of_batch, clip_skip=clip_skip, sampler_options=sampler_options, within_pass=within_pass
        )
        latents = WithResult(sampling.latents(sampler))
        for step, _ in enumerate(latents, start=1):
            yield SamplingStep(len(images), len(batch), step, of_batch[0].steps)
        images.update(zip(batch, decode_latents(model, latents.result), strict=True))
    return [images[index] for index in range(len(prompts))]


def _batches(model: DiffusionModel, prompts: Sequence[SamplePrompt]) -> list[list[int]]:
    """Indices of the prompts that share a batch."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        key = (prompt.width, prompt.height, prompt.steps, _chunks(model, prompt))
        groups.setdefault(key, []).append(index)
    batches = []
    for (width, height, *_), indices in groups.items():
        limit = images_at_once(width, height)
        batches += [indices[start : start + limit] for start in range(0, len(indices), limit)]
    return batches


def images_at_once(width: int, height: int) -> int:
    """How many images of a size in px to draw at a time."""
    return max(1, min(_BATCH_LIMIT, _PIXELS_PER_BATCH // (width * height)))


def _chunks(model: DiffusionModel, prompt: SamplePrompt) -> int:
    return prompt_chunks(model, [prompt.prompt, prompt.negative])


class _BatchSampling:
    """Sampling of one batch of prompts of equal size, steps and length."""

    def __init__(
        self,
        model: DiffusionModel,
        prompts: Sequence[SamplePrompt],
        *,
        clip_skip: int,
        sampler_options: SamplerOptions,
        within_pass: WithinPass,
    ) -> None:
        self._model = model
        self._within_pass = within_pass
        self._habits = sampler_options
        self._steps = prompts[0].steps
        self._cfg = torch.tensor([p.cfg for p in prompts], device=model.device).view(-1, 1, 1, 1)
        self._guided = any(prompt.cfg != 1 for prompt in prompts)
        texts = [p.prompt for p in prompts] + ([p.negative for p in prompts] if self._guided else [])
        self._condition = encode_prompts(model, texts, clip_skip)
        size = (prompts[0].height, prompts[0].width)
        self._sizes = size_condition([size] * len(texts), [(0, 0)] * len(texts), [size] * len(texts))
        self._noises = [_noise_of(prompt.seed, sampler_options) for prompt in prompts]
        self._shape = (model.latent_format.channels, size[0] // LATENT_CELL_PX, size[1] // LATENT_CELL_PX)

    def latents(self, sampler: str) -> Sampling:
        """(B, 4, h, w) float32, scaled as the UNet expects them, after yielding after every step."""
        schedule, sampler_options = self._model.schedule, self._habits
        start, sampler = self._noise(), sampler_for(schedule, sampler, sampler_options).name
        if sampler == "DDIM":
            assert isinstance(schedule, DiffusionSchedule)
            timesteps = ddim_timesteps(schedule, self._steps)
            return sample_ddim(
                lambda x, index: self._predict(x, timesteps[index], index),
                start,
                schedule,
                timesteps,
                eta=sampler_options.eta_ddim,
                noise=self._noise,
            )
        levels = sigma_levels(schedule, self._steps, shift=sampler_options.flow_shift)
        if sampler_options.quantize_timesteps:
            levels = levels.quantized
        start = start * levels.sigmas[0]

        def denoise(x: Tensor, index: int) -> Tensor:
            return self._denoise(x, levels, index)

        if sampler == "Euler a":
            return sample_euler_ancestral(denoise, start, levels, self._noise, eta=sampler_options.eta_ancestral)
        return sample_euler(denoise, start, levels)

    def _noise(self) -> Tensor:
        """The next noise of every prompt's generator, (B, 4, h, w)."""
        return torch.stack([draw(self._shape) for draw in self._noises]).to(self._model.device)

    def _denoise(self, x: Tensor, levels: NoiseLevels, index: int) -> Tensor:
        """The expected x₀ in σ notation; guidance is linear, so it may be applied to the model's output."""
        sigma, predicts = levels.sigmas[index], self._model.schedule.prediction_type
        output = self._predict(network_input(x, sigma, predicts), levels.timesteps[index], index)
        return expected_image(x, output, sigma, predicts)

    def _predict(self, x: Tensor, timestep: float, index: int) -> Tensor:
        """The UNet's output with classifier-free guidance (Ho & Salimans 2022): u + cfg·(c − u), float32."""
        both = torch.cat([x, x]) if self._guided else x
        timesteps = torch.full((len(both),), float(timestep))
        with self._within_pass():
            output = predict(self._model, both, timesteps, self._condition, self._sizes).float()
        if not self._guided:
            return output
        positive, negative = output.chunk(2)
        return negative + self._cfg * (positive - negative) if self._habits.is_guided(index, self._steps) else positive


def _noise_of(seed: int, sampler_options: SamplerOptions) -> DrawNoise:
    """A prompt's noise: the initial one, then that of the steps."""
    start = _normal(seed, sampler_options.noise_source)
    if not sampler_options.eta_noise_seed_delta:
        return start
    draws = chain([start], repeat(_normal(seed + sampler_options.eta_noise_seed_delta, sampler_options.noise_source)))
    return lambda shape: next(draws)(shape)


def _normal(seed: int, source: NoiseSource) -> DrawNoise:
    if source == "philox":
        return PhiloxNoise(seed).draw
    generator = torch.Generator(source).manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator, device=generator.device)
