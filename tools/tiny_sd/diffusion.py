"""Stable Diffusion 1's noise schedule, its training loss and a DDIM sampler, as functions."""

from __future__ import annotations

from itertools import pairwise

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from .models import LATENT_CHANNELS, SCALE_FACTOR, in_parts

TIMESTEPS = 1000


def alphas_cumprod() -> torch.Tensor:
    """SD1's ᾱ_t (1000,) float32: betas are the squares of an even ladder."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def timestep_density(alphas: torch.Tensor) -> torch.Tensor:
    """Probability of each timestep (1000,), ∝ ᾱ^-1/4: four times as often at the noisy end.

    What the caption decides is settled at high noise, what a drawing looks like in the middle.
    At ᾱ^-1/2 half of all images had t > 800, and drawings stayed vague.
    """
    density = alphas**-0.25
    return density / density.sum()


def draw_timesteps(density: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` timesteps, one from each of ``count`` equally likely slices of ``density``."""
    places = (torch.arange(count) + torch.rand(count)) / count
    return torch.searchsorted(density.cumsum(0), places).clamp(max=TIMESTEPS - 1)


def loss_weights(alphas: torch.Tensor) -> torch.Tensor:
    """Loss weight per timestep (1000,), mean one under :func:`timestep_density`.

    With the density they weigh the noise's error by SNR^-1/2, half way between the error of
    the noise and the error of the image; every noise level then counts about the same.
    """
    density = timestep_density(alphas)
    weights = ((1 - alphas) / alphas).sqrt() / density
    return weights / (weights * density).sum()


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """x_t = √ᾱ x_0 + √(1-ᾱ) ε for latents (B, C, H, W) and timesteps (B,)."""
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def noise_errors(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    context: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Squared error of the predicted noise for each image (B,)."""
    noisy = add_noise(latents, noise, alphas_cumprod(), timesteps)
    predicted = unet(noisy, timesteps, context).sample
    errors: torch.Tensor = (predicted - noise).square().mean((1, 2, 3))
    return errors


@torch.no_grad()
def caption_gap(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    latents: torch.Tensor,
    tokens: torch.Tensor,
    *,
    timestep: int = 900,
) -> tuple[float, float]:
    """Loss with the right captions and with everybody's neighbour's, at one noise level.

    Equal numbers mean that captions are ignored: the early health check.
    """
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    times = torch.full((len(latents),), timestep)
    context = text_encoder(tokens).last_hidden_state
    right = noise_errors(unet, latents, context, times, noise).mean().item()
    wrong = noise_errors(unet, latents, context.roll(1, 0), times, noise).mean().item()
    return right, wrong


@torch.no_grad()
def sample_latents(
    unet: UNet2DConditionModel,
    context: torch.Tensor,
    empty_context: torch.Tensor,
    *,
    steps: int = 16,
    guidance: float = 2.5,
    seed: int = 0,
    side: int = 16,
) -> torch.Tensor:
    """DDIM (eta 0) with classifier-free guidance for contexts (B, 77, 64): (B, 4, side, side)."""
    alphas = alphas_cumprod()
    generator = torch.Generator().manual_seed(seed)
    count = len(context)
    latents = torch.randn((count, LATENT_CHANNELS, side, side), generator=generator)
    times = torch.linspace(TIMESTEPS - 1, 0, steps + 1).round().long()
    both = torch.cat([empty_context.expand_as(context), context])
    for now, following in pairwise(times):
        plain, guided = unet(torch.cat([latents] * 2), now, both).sample.chunk(2)
        noise = plain + guidance * (guided - plain)
        alpha, alpha_next = alphas[now], alphas[following]
        clean = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        latents = alpha_next.sqrt() * clean + (1 - alpha_next).sqrt() * noise
    # The last ladder step ends at t = 0, whose trace of noise is left out.
    final: torch.Tensor = clean
    return final


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Images (B, 128, 128, 3) uint8 of scaled latents (B, 4, 16, 16)."""
    images = torch.cat([vae.decode(part / SCALE_FACTOR).sample for part in in_parts(latents, 8)])
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
