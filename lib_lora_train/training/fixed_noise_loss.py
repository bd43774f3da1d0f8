"""Losses with fixed noise: how much was learnt (held-out loss) and how much else has changed (drift).

The training loss is noisy because every step draws new noise and timesteps. A probe fixes images, noise and timesteps,
so that its numbers change only with the adapter.

Notation: N samples (images × timesteps), C channels, h × w the latent's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.core.seeding import seed_for
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.models.noise_schedule import add_noise, prediction_target
from lib_lora_train.models.prompts import encode_prompts, prompt_chunks
from lib_lora_train.training.step import predict, size_conditions

TIMESTEPS = (100, 300, 500, 700, 900)
_BATCH = 40


@dataclass(frozen=True, eq=False)
class Probe:
    """Latents and noise (N, C, h, w) float32, timesteps (N,), size conditioning (N, 6) and a caption for each."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    sizes: Tensor
    captions: tuple[str, ...]


def make_probe(
    model: DiffusionModel, plan: Plan, latents: LatentCache, *, seed: int, timesteps: Sequence[int] = TIMESTEPS
) -> Probe:
    """Every image of `plan` at each of `timesteps`, with noise that depends only on the seed and its position.

    All images must be in one bucket; ValueError otherwise.
    """
    items = [item for item in range(len(plan.dataset.items)) if item in latents]
    clean = [model.latent_format.scaled(latents[item].mean) for item in items]
    if len({tuple(latent.shape) for latent in clean}) != 1:
        raise ValueError("a probe needs images of one size")
    pairs = [(place, timestep) for place in range(len(items)) for timestep in timesteps]
    return Probe(
        latents=torch.stack([clean[place] for place, _ in pairs]).float(),
        noise=torch.stack([_noise(seed, place, timestep, tuple(clean[place].shape)) for place, timestep in pairs]),
        timesteps=torch.tensor([timestep for _, timestep in pairs]),
        sizes=size_conditions(plan, [items[place] for place, _ in pairs]),
        captions=tuple(plan.dataset.items[items[place]].caption for place, _ in pairs),
    )


def _noise(seed: int, place: int, timestep: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(seed_for(seed, "probe", place, timestep))
    return torch.randn(shape, generator=generator)


@torch.no_grad()
def probe_predictions(model: DiffusionModel, probe: Probe, *, clip_skip: int, captioned: bool = True) -> Tensor:
    """The UNet's predictions (N, C, h, w), float32 on the processor; with empty captions unless `captioned`."""
    captions = probe.captions if captioned else ("",) * len(probe.captions)
    chunks = prompt_chunks(model, captions, is_weighted=False)
    parts = []
    for start in range(0, len(captions), _BATCH):
        part = slice(start, start + _BATCH)
        noisy = add_noise(
            model.schedule,
            probe.latents[part].to(model.device),
            probe.noise[part].to(model.device),
            probe.timesteps[part],
        )
        texts = captions[part]
        condition = encode_prompts(model, texts, clip_skip, is_weighted=False, chunks=chunks)
        prediction = predict(model, noisy, probe.timesteps[part], condition, probe.sizes[part])
        parts.append(prediction.float().cpu())
    return torch.cat(parts)


def probe_loss(model: DiffusionModel, probe: Probe, predictions: Tensor) -> float:
    """Mean squared error of `predictions` (N, C, h, w) from the schedule's target, unweighted."""
    target = prediction_target(model.schedule, probe.latents, probe.noise, probe.timesteps)
    return float((predictions - target).square().mean())


def drift(after: Tensor, before: Tensor, uncaptioned: Tensor) -> float:
    """How far predictions moved, relative to the effect of captions: ‖after − before‖ / ‖before − uncaptioned‖.

    0: nothing changed. 1: the adapter changes the prediction as much as leaving out the caption would.
    """
    return float((after - before).norm() / (before - uncaptioned).norm())
