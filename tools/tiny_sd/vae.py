"""Training of the autoencoder, the whitening of its latents, and the decoder's last polish."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from .emoji import NOUNS, VAE_ONLY, load_emoji
from .models import (
    SCALE_FACTOR,
    build_vae,
    calibrate,
    in_parts,
    let_averages_through,
    tensor_from_images,
    zero_last_layers,
)
from .parallel import (
    Ema,
    average_across_processes,
    cosine_rate,
    gradients_of,
    run_in_processes,
    save_atomically,
)
from .scenes import SIZE_PX, Drawings, Scene, Thing, draw_scene, render_scene


@dataclass(frozen=True)
class VaeRun:
    """What one run of the VAE stage needs; times in seconds of wall clock."""

    emoji: Path
    out: Path
    seconds: float
    decoder_only: bool = False
    start_from: Path | None = None
    peak_rate: float = 1e-3
    crop_px: int = 48
    full_size_after: float = 0.7
    latent_noise: float = 0.03
    seed: int = 0


def draw_vae_scene(rng: random.Random, icons: list[str]) -> Scene:
    """A scene whose emoji may also come from the drawings that only the VAE sees."""
    scene = draw_scene(rng)
    if rng.random() < 0.25:
        swap = Thing(rng.choice(icons))
        objects = tuple(replace(placed, thing=swap) for placed in scene.objects)
        return Scene(scene.kind, scene.background, scene.texture, objects, tint=scene.tint)
    return scene


def draw_image(rng: random.Random, drawings: Drawings, icons: list[str], crop_px: int) -> Image.Image:
    """A crop of a random scene, one in five with its colour channels shuffled."""
    image = render_scene(draw_vae_scene(rng, icons), drawings)
    if crop_px < SIZE_PX:
        x, y = (rng.randint(0, SIZE_PX - crop_px) for _ in range(2))
        image = image.crop((x, y, x + crop_px, y + crop_px))
    if rng.random() < 0.2:
        bands = list(image.split())
        rng.shuffle(bands)
        image = Image.merge("RGB", bands)
    return image


def image_batch(rng: random.Random, drawings: Drawings, icons: list[str], count: int, crop_px: int) -> torch.Tensor:
    """``count`` images as (B, 3, crop, crop) in [-1, 1]."""
    images = [draw_image(rng, drawings, icons, crop_px) for _ in range(count)]
    return tensor_from_images([torch.from_numpy(np.array(image)) for image in images])


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 + MSE + L1 of horizontal and vertical differences (which keeps edges sharp)."""
    edges = sum(((output - target).diff(dim=axis)).abs().mean() for axis in (2, 3))
    return F.l1_loss(output, target) + F.mse_loss(output, target) + edges


def psnr_db(output: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of images in [-1, 1]."""
    error = F.mse_loss(output.clamp(-1, 1), target).item() / 4
    return float(-10 * np.log10(max(error, 1e-10)))


def _train_worker(rank: int, run: VaeRun) -> None:
    torch.manual_seed(run.seed)
    vae = build_vae()
    zero_last_layers(vae, ("conv2", "to_out.0"))
    let_averages_through(vae)
    drawings, icons = load_drawings(run.emoji)
    calibrate(vae, image_batch(random.Random(run.seed), drawings, icons, 16, run.crop_px))
    if run.start_from:
        vae.load_state_dict(torch.load(run.start_from)["vae"])
    torch.manual_seed(run.seed * 1000 + rank)
    rng = random.Random(run.seed * 1000 + rank)
    trained = [vae.decoder, vae.post_quant_conv] if run.decoder_only else [vae]
    parameters = [p for module in trained for p in module.parameters()]
    optimiser = torch.optim.AdamW(parameters, run.peak_rate, betas=(0.9, 0.99), weight_decay=0.0)
    ema = Ema(vae, 0.995)
    started, step, progress = time.time(), 0, 0.0
    while progress < 1:
        full_size = progress > run.full_size_after
        pixels = (
            image_batch(rng, drawings, icons, 1, SIZE_PX)
            if full_size
            else image_batch(rng, drawings, icons, 6, run.crop_px)
        )
        for group in optimiser.param_groups:
            group["lr"] = cosine_rate(run.peak_rate, progress)
        output, penalty = _pass_through(vae, pixels, run)
        loss = reconstruction_loss(output, pixels) + penalty
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        elapsed = torch.tensor([time.time() - started])
        average_across_processes([*gradients_of(*trained), elapsed])
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        ema.update(vae)
        step += 1
        progress = elapsed.item() / run.seconds
        if rank == 0 and step % 20 == 0:
            quality = psnr_db(output.detach(), pixels)
            print(f"vae {step} {elapsed.item():.0f}s loss {loss.item():.4f} {quality:.1f} dB", flush=True)
        if rank == 0 and (step % 200 == 0 or progress >= 1):
            save_atomically(run.out, {"vae": ema.weights, "step": step, "progress": progress})


def _pass_through(vae: AutoencoderKL, pixels: torch.Tensor, run: VaeRun) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction from slightly noisy latents, and a tiny penalty on the latents' size.

    The noise is a share of the latents' spread, so growing them does not escape it.
    """
    with torch.set_grad_enabled(not run.decoder_only):
        latents = vae.encode(pixels).latent_dist.mode()
    noise = run.latent_noise * latents.detach().std() * torch.randn_like(latents)
    return vae.decode(latents + noise).sample, 1e-5 * latents.square().mean()


def load_drawings(emoji: Path) -> tuple[Drawings, list[str]]:
    """The drawings, and the names that VAE images draw from."""
    images = load_emoji(emoji)
    icons = [name for name in VAE_ONLY if name in images]
    return Drawings(images), [*icons, *NOUNS]


def train_vae(run: VaeRun) -> None:
    """Train the VAE (or only its decoder) for ``run.seconds`` and save its EMA weights."""
    run_in_processes(_train_worker, run)


@torch.no_grad()
def whiten_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Fold a whitening of the latents into quant_conv and post_quant_conv; returns the rotation.

    Afterwards SCALE_FACTOR × latent has zero mean and unit variance on ``pixels``
    (B, 3, H, W), channels decorrelated, and decoding is unchanged. The posterior's
    spread becomes a constant 3% of the latents'.
    """
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in in_parts(pixels, 16)])
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    mean = flat.mean(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat))
    whiten: torch.Tensor = (vectors / values.sqrt()) @ vectors.T / SCALE_FACTOR
    colour = torch.linalg.inv(whiten)
    channels = mean.numel()
    # quant_conv: mean rows m -> W (m - mu); log-variance rows -> a constant.
    weight = vae.quant_conv.weight[:, :, 0, 0].double()
    bias = vae.quant_conv.bias.double()
    weight[:channels] = whiten @ weight[:channels]
    bias[:channels] = whiten @ (bias[:channels] - mean)
    weight[channels:] = 0
    bias[channels:] = 2 * np.log(0.03 / SCALE_FACTOR)
    vae.quant_conv.weight.copy_(weight[:, :, None, None])
    vae.quant_conv.bias.copy_(bias)
    # post_quant_conv: z -> P (C z + mu) + p.
    post = vae.post_quant_conv.weight[:, :, 0, 0].double()
    vae.post_quant_conv.bias.copy_(vae.post_quant_conv.bias.double() + post @ mean)
    vae.post_quant_conv.weight.copy_((post @ colour)[:, :, None, None])
    return whiten
