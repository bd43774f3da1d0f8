"""Every random draw of a training sample, as a function of (seed, draw) alone.

`draw` is the sample's number within the whole run. Each sample has private generators on the processor,
so its noise is the same on every device, in every batch, after every pause and in a resumed run.

C: latent channels; h, w: the latent's height and width; T: timesteps of the schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.randomness import random_for, seed_for


@dataclass(frozen=True, eq=False)
class SampleNoise:
    """The draws of one sample: `noise` to be predicted and `posterior` for the VAE, (C, h, w) float32; `timestep`."""

    noise: Tensor
    posterior: Tensor
    timestep: int


def draw_sample_noise(
    seed: int, draw: int, *, shape: tuple[int, ...], timesteps: int, noise_offset: float = 0.0
) -> SampleNoise:
    """The draws of sample number `draw` for a latent of `shape` (C, h, w), on the processor."""
    return SampleNoise(
        noise=draw_noise(seed, draw, shape, offset=noise_offset),
        posterior=_normal(seed, "posterior", draw, shape),
        timestep=draw_timestep(seed, draw, timesteps),
    )


def draw_noise(seed: int, draw: int, shape: tuple[int, ...], *, offset: float = 0.0) -> Tensor:
    """Standard normal (C, h, w), plus `offset` times one normal number per channel.

    The offset is Guttenberg 2023, "Diffusion with Offset Noise"; it has a purpose of its own, so that
    switching it on does not change the rest of the noise.
    """
    noise = _normal(seed, "noise", draw, shape)
    if offset:
        noise += offset * _normal(seed, "noise offset", draw, (shape[0], 1, 1))
    return noise


def draw_timestep(seed: int, draw: int, timesteps: int) -> int:
    """Uniform in [0, T)."""
    return random_for(seed, "timestep", draw).randrange(timesteps)


def _normal(seed: int, purpose: str, draw: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed, purpose, draw))
    return torch.randn(shape, generator=generator)
