"""Noise schedules and the forward process: x_t = signal·x₀ + spread·noise.

There are two kinds. A diffusion model's coefficients are √ᾱ and √(1−ᾱ) of a table (`DiffusionSchedule`); rectified
flow has 1 − σ and σ, a straight line from the image to the noise (`FlowSchedule`).

T: timesteps of the schedule (1000). ᾱ: `alphas_cumprod`. All coefficients are float64 and are rounded once, to the
latents' dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_lora_train.models.architecture import ModelSpec, PredictionType
from lib_lora_train.models.kinds.registry import kind_of


class NoiseSchedule(ABC):
    """How much noise there is at each timestep, and what the network predicts.

    Timesteps are numbers from 0, nearly noise-free, to T, pure noise; `has_real_timesteps` says whether all real
    numbers between are timesteps too. Pass them on the CPU: reading them from a GPU would synchronise.
    """

    prediction_type: PredictionType
    has_real_timesteps: bool

    @abstractmethod
    def __len__(self) -> int:
        """T."""

    @abstractmethod
    def mixture(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and spread of each timestep, (B,) float64 on the CPU each."""

    @abstractmethod
    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio (signal / spread)², (B,) float64 on the CPU; 0 at pure noise."""

    @abstractmethod
    def as_noisy_as(self, timestep: int) -> float:
        """The timestep with as much noise as Stable Diffusion has at `timestep`."""


@dataclass(frozen=True, eq=False)
class DiffusionSchedule(NoiseSchedule):
    """`alphas_cumprod`, (T,) float64 on the CPU, decreasing, in [0, 1), for models that predict the noise or v."""

    alphas_cumprod: Tensor
    prediction_type: PredictionType
    has_real_timesteps = False

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def mixture(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ and √(1−ᾱ)."""
        alphas = self._alphas(timesteps)
        return alphas.sqrt(), (1.0 - alphas).sqrt()

    def snr(self, timesteps: Tensor) -> Tensor:
        """ᾱ / (1 − ᾱ)."""
        alphas = self._alphas(timesteps)
        return alphas / (1.0 - alphas)

    def as_noisy_as(self, timestep: int) -> float:
        """The same timestep."""
        return timestep

    def _alphas(self, timesteps: Tensor) -> Tensor:
        return self.alphas_cumprod[timesteps.to(self.alphas_cumprod.device)]


@dataclass(frozen=True, eq=False)
class FlowSchedule(NoiseSchedule):
    """Rectified flow (Liu et al. 2022; Esser et al. 2024, section 2): x_t = (1 − σ)·x₀ + σ·noise with σ = timestep / T.

    The network predicts the direction noise − x₀. `shift` is the usual shift of σ when images are drawn (see
    `shifted`); training is not affected by it.
    """

    shift: float = 1.0
    timesteps: int = 1000
    prediction_type: PredictionType = "rectified_flow"
    has_real_timesteps = True

    def __len__(self) -> int:
        return self.timesteps

    def mixture(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """1 − σ and σ."""
        sigmas = timesteps.to("cpu", torch.float64) / self.timesteps
        return 1.0 - sigmas, sigmas

    def snr(self, timesteps: Tensor) -> Tensor:
        """((1 − σ) / σ)²."""
        signal, spread = self.mixture(timesteps)
        return (signal / spread).square()

    def as_noisy_as(self, timestep: int) -> float:
        """T·σ with σ / (1 − σ) = √((1−ᾱ)/ᾱ) of Stable Diffusion's schedule."""
        signal, spread = scaled_linear_schedule("epsilon").mixture(torch.tensor(timestep))
        return self.timesteps * float(spread / (signal + spread))


def shifted(share: float, shift: float) -> float:
    """s·u / (1 + (s − 1)·u) for a share u in [0, 1]: a shift s above 1 moves it towards 1 (noise), below 1 towards 0.

    Esser et al. 2024, "Scaling Rectified Flow Transformers", equation 23. The signal-to-noise ratio is divided by s².
    """
    return shift * share / (1.0 + (shift - 1.0) * share)


def scaled_linear_schedule(
    prediction_type: PredictionType, *, start: float = 0.00085, end: float = 0.0120, timesteps: int = 1000
) -> DiffusionSchedule:
    """Stable Diffusion's schedule, with evenly spaced √β: "linear" in ldm, "scaled_linear" in diffusers."""
    betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
    return DiffusionSchedule(torch.cumprod(1.0 - betas, dim=0), prediction_type)


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """ᾱ (T,) shifted and scaled so that the last timestep is pure noise (ᾱ = 0) and the first keeps its value.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
    """
    roots = alphas_cumprod.sqrt()
    first, last = roots[0], roots[-1]
    return ((roots - last) * first / (first - last)) ** 2


def schedule_for(spec: ModelSpec) -> NoiseSchedule:
    """The schedule that models of this kind were trained with."""
    if spec.prediction_type == "rectified_flow":
        return FlowSchedule(shift=kind_of(spec.architecture).flow_shift)
    schedule = scaled_linear_schedule(spec.prediction_type)
    if spec.zero_terminal_snr:
        schedule = replace(schedule, alphas_cumprod=rescale_zero_terminal_snr(schedule.alphas_cumprod))
    return schedule


def add_noise(schedule: NoiseSchedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = signal·latents + spread·noise, shape and dtype of `latents` (B, C, …); `timesteps` (B,) on the CPU."""
    signal, spread = _coefficients(schedule, latents, timesteps)
    return signal * latents + spread * noise


def prediction_target(schedule: NoiseSchedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the network should predict: the noise, v = signal·noise − spread·latents, or noise − latents for a flow.

    v is from Salimans & Ho 2022. Shape and dtype of `latents`.
    """
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "rectified_flow":
        return noise - latents
    signal, spread = _coefficients(schedule, latents, timesteps)
    return signal * noise - spread * latents


def snr(schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio of each timestep, (B,) float64 on the CPU; 0 at pure noise."""
    return schedule.snr(timesteps)


def _coefficients(schedule: NoiseSchedule, latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and spread as (B, 1, …) of the latents' dtype and device; rounded before the move (MPS has no float64)."""
    both = torch.stack(schedule.mixture(timesteps)).to(latents.dtype)
    signal, spread = both.view(2, -1, *(1,) * (latents.ndim - 1)).to(latents.device, non_blocking=True)
    return signal, spread
