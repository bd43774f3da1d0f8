"""Every random draw of a training sample, as a function of (seed, draw) alone.

`draw` is the sample's number within the whole run. Each sample has its own generators on the processor, so its noise is
the same on every device, in every batch, after every pause and in a resumed run. Each purpose has its own generator
too, so turning one option on leaves the draws of all others unchanged.

C: latent channels; h, w: the latent's height and width; T: timesteps of the schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from lib_lora_train.config.resolution_shift import shift_for
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.seeding import random_for, seed_for
from lib_lora_train.models.noise_schedule import NoiseSchedule, shifted


@dataclass(frozen=True)
class NoiseOptions:
    """What is added to standard normal noise; nothing by default."""

    offset: float = 0.0
    offset_is_random: bool = False
    adaptive_scale: float = 0.0
    multires_iterations: int = 0
    multires_discount: float = 0.3
    input_gamma: float = 0.0
    input_gamma_is_random: bool = False


@dataclass(frozen=True)
class TimestepOptions:
    """Timesteps from `first` to below `end`, drawn by `sampling`: uniform, or sigmoid(mean + scale·normal).

    `shift` moves the drawn share of the range (see `shifted`). `is_real`: all real numbers of the range can be drawn.
    """

    end: int
    first: int = 0
    sampling: str = "uniform"
    sigmoid_scale: float = 1.0
    sigmoid_mean: float = 0.0
    shift: float = 1.0
    is_real: bool = False


def noise_options(config: TrainConfig) -> NoiseOptions:
    """The noise options from the settings."""
    return NoiseOptions(
        offset=config.noise_offset,
        offset_is_random=config.noise_offset_random_strength,
        adaptive_scale=config.adaptive_noise_scale,
        multires_iterations=config.multires_noise_iterations,
        multires_discount=config.multires_noise_discount,
        input_gamma=config.ip_noise_gamma,
        input_gamma_is_random=config.ip_noise_gamma_random_strength,
    )


def timestep_options(config: TrainConfig, schedule: NoiseSchedule, height: int = 0, width: int = 0) -> TimestepOptions:
    """The timestep options from the settings, for a schedule and a latent of this size."""
    return TimestepOptions(
        end=min(config.max_timestep, len(schedule)),
        first=config.min_timestep,
        sampling=config.timestep_sampling,
        sigmoid_scale=config.sigmoid_scale,
        sigmoid_mean=config.sigmoid_mean,
        shift=shift_for(config, height, width),
        is_real=schedule.has_real_timesteps,
    )


def draw_posterior(seed: int, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal (C, h, w) float32 that draws the latent from the VAE's posterior."""
    return _normal(shape, seed, "posterior", draw)


def draw_noise(seed: int, draw: int, latent: Tensor, options: NoiseOptions) -> Tensor:
    """The noise to predict for a `latent` (C, h, w): standard normal, float32, plus what the options add."""
    shape = tuple(latent.shape)
    noise = _normal(shape, seed, "noise", draw)
    if options.offset or options.adaptive_scale:
        noise += offset_strength(seed, draw, latent, options) * _normal((shape[0], 1, 1), seed, "noise offset", draw)
    return _with_multires(noise, seed, draw, options) if options.multires_iterations else noise


def offset_strength(seed: int, draw: int, latent: Tensor, options: NoiseOptions) -> float | Tensor:
    """The factor of each channel's normal number: max(0, offset + scale·|mean of the channel|).

    Guttenberg 2023, "Diffusion with Offset Noise". A random strength is offset·U(0, 1), drawn for each sample
    (sd-scripts: for each batch), before the adaptive part is added. A float, or (C, 1, 1) if adaptive.
    """
    strength = options.offset
    if options.offset_is_random:
        strength *= random_for(seed, "noise offset strength", draw).random()
    if not options.adaptive_scale:
        return strength
    return (strength + options.adaptive_scale * latent.mean(dim=(1, 2), keepdim=True).abs()).clamp(min=0.0)


def _with_multires(noise: Tensor, seed: int, draw: int, options: NoiseOptions) -> Tensor:
    """`noise` + Σ discountⁱ × ever coarser noise, enlarged to (C, h, w) and scaled to standard deviation 1.

    Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training". The deviation is that of
    the sample (sd-scripts: of the batch), so that a sample does not depend on its neighbours.
    """
    channels, height, width = noise.shape
    for level, size in enumerate(_multires_sizes(seed, draw, height, width, options.multires_iterations)):
        coarse = _normal((1, channels, *size), seed, "multires noise", draw, level)
        large = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        noise = noise + options.multires_discount**level * large[0]
    return noise / noise.std()


def _multires_sizes(seed: int, draw: int, height: int, width: int, iterations: int) -> list[tuple[int, int]]:
    """Height and width of each level: sides / rⁱ, r uniform in [2, 4); stops after a level with a side of 1."""
    sizes: list[tuple[int, int]] = []
    for level in range(iterations):
        shrink = random_for(seed, "multires shrink", draw, level).uniform(2.0, 4.0) ** level
        sizes.append((max(1, int(height / shrink)), max(1, int(width / shrink))))
        if 1 in sizes[-1]:
            break
    return sizes


def draw_input_noise(seed: int, draw: int, noise: Tensor, options: NoiseOptions) -> Tensor:
    """The noise to mix into the latent: `noise` + γ·normal, while `noise` remains what is to be predicted.

    Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models", algorithm 1; a random
    strength is γ·U(0, 1) for each sample. `noise` itself for γ = 0.
    """
    gamma = options.input_gamma
    if not gamma:
        return noise
    if options.input_gamma_is_random:
        gamma *= random_for(seed, "input perturbation strength", draw).random()
    return noise + gamma * _normal(tuple(noise.shape), seed, "input perturbation", draw)


def draw_timestep(seed: int, draw: int, options: TimestepOptions) -> float:
    """A timestep in [first, end): uniform, or logit-normal (Esser et al. 2024, section 3.1), shifted, in the range.

    A whole number, or for `is_real` a number in (first, end].
    """
    random = random_for(seed, "timestep", draw)
    if options.sampling == "uniform" and options.shift == 1.0 and not options.is_real:
        return random.randrange(options.first, options.end)
    share = shifted(_draw_share(random, options), options.shift)
    offset = share * (options.end - options.first)
    return options.first + offset if options.is_real else min(options.first + int(offset), options.end - 1)


def _draw_share(random: Random, options: TimestepOptions) -> float:
    """A number in (0, 1]: no noise at all is never drawn, since its signal-to-noise ratio is infinite."""
    if options.sampling == "uniform":
        return 1.0 - random.random()
    return 1.0 / (1.0 + math.exp(-(options.sigmoid_mean + options.sigmoid_scale * random.gauss(0.0, 1.0))))


def _normal(shape: tuple[int, ...], seed: int, purpose: str, *counters: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed, purpose, *counters))
    return torch.randn(shape, generator=generator)
