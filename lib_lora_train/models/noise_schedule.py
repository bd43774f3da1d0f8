"""Noise schedules and the forward process.

T: timesteps of the schedule (1000). ᾱ: `alphas_cumprod`. All coefficients come from a float64 table and are rounded
once, to the latents' dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_lora_train.models.architecture import ModelSpec, PredictionType


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """`alphas_cumprod`, (T,) float64 on the CPU, decreasing, in [0, 1), and what the UNet predicts."""

    alphas_cumprod: Tensor
    prediction_type: PredictionType

    def __len__(self) -> int:
        return len(self.alphas_cumprod)


def scaled_linear_schedule(
    prediction_type: PredictionType, *, start: float = 0.00085, end: float = 0.0120, timesteps: int = 1000
) -> NoiseSchedule:
    """Stable Diffusion's schedule, with evenly spaced √β: "linear" in ldm, "scaled_linear" in diffusers."""
    betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
    return NoiseSchedule(torch.cumprod(1.0 - betas, dim=0), prediction_type)


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """ᾱ (T,) shifted and scaled so that the last timestep is pure noise (ᾱ = 0) and the first keeps its value.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
    """
    roots = alphas_cumprod.sqrt()
    first, last = roots[0], roots[-1]
    return ((roots - last) * first / (first - last)) ** 2


def schedule_for(spec: ModelSpec) -> NoiseSchedule:
    """The schedule that models of this kind were trained with."""
    schedule = scaled_linear_schedule(spec.prediction_type)
    if spec.zero_terminal_snr:
        schedule = replace(schedule, alphas_cumprod=rescale_zero_terminal_snr(schedule.alphas_cumprod))
    return schedule


def add_noise(schedule: NoiseSchedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = √ᾱ·latents + √(1−ᾱ)·noise, shape and dtype of `latents` (B, C, h, w); `timesteps` (B,) int.

    Pass `timesteps` on the CPU: reading them from a GPU would synchronise.
    """
    signal, spread = _roots(schedule, latents, timesteps)
    return signal * latents + spread * noise


def prediction_target(schedule: NoiseSchedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet should predict: the noise, or v = √ᾱ·noise − √(1−ᾱ)·latents (Salimans & Ho 2022)."""
    if schedule.prediction_type == "epsilon":
        return noise
    signal, spread = _roots(schedule, latents, timesteps)
    return signal * noise - spread * latents


def snr(schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ / (1 − ᾱ) of each timestep, (B,) float64 on the CPU; 0 at a zero-terminal end."""
    alphas = schedule.alphas_cumprod[timesteps.to(schedule.alphas_cumprod.device)]
    return alphas / (1.0 - alphas)


def _roots(schedule: NoiseSchedule, latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1−ᾱ) as (B, 1, 1, 1) of the latents' dtype and device; rounded before the move (MPS has no float64)."""
    alphas = schedule.alphas_cumprod[timesteps.to(schedule.alphas_cumprod.device)].view(-1, 1, 1, 1)
    roots = torch.stack([alphas.sqrt(), (1.0 - alphas).sqrt()]).to(latents.dtype)
    signal, spread = roots.to(latents.device, non_blocking=True)
    return signal, spread
