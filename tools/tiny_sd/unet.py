"""Training of the UNet and the text encoder on latents of captioned scenes."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from .diffusion import (
    alphas_cumprod,
    caption_gap,
    draw_timesteps,
    loss_weights,
    noise_errors,
    timestep_density,
)
from .emoji import load_emoji
from .export import save_single_file, to_single_file
from .models import (
    SCALE_FACTOR,
    build_text_encoder,
    build_unet,
    build_vae,
    in_parts,
    tensor_from_images,
    zero_last_layers,
)
from .muon import RATE_PER_ADAM_RATE, Muon
from .parallel import (
    Ema,
    average_across_processes,
    cosine_rate,
    gradients_of,
    run_in_processes,
    save_atomically,
)
from .scenes import Drawings, Scene, caption_scene, draw_training_scene, render_scene

WORDINGS = 3
EMA_DECAY = 0.98  # a short run: at 0.999 the average would lag far behind
CHECK_SCENES = 48
TEXT_WAITS = 0.4  # share of the training before the text encoder moves


@dataclass(frozen=True)
class UnetRun:
    """What the latent and UNet stages need; times in seconds of wall clock."""

    work: Path
    tokenizer: Path
    snapshot: Path
    seconds: float
    start_from: Path | None = None
    processes: int = 2
    scenes_per_process: int = 1300
    fresh_per_step: int = 1
    batch_per_process: int = 12
    peak_rate: float = 1e-3
    hold_text: bool = False
    empty_share: float = 0.1
    snapshot_every: float = 360.0
    seed: int = 7

    @property
    def emoji(self) -> Path:
        """The rasterised drawings."""
        return self.work / "emoji.npz"

    @property
    def vae(self) -> Path:
        """The VAE with whitened latents."""
        return self.work / "vae-white.pt"

    @property
    def state(self) -> Path:
        """Everything needed to continue after an interruption."""
        return self.work / "unet-state.pt"


class SceneSource:
    """An endless, seeded source of (latent, tokens of several wordings) pairs."""

    def __init__(self, run: UnetRun, seed: int) -> None:
        self.rng = random.Random(seed)
        self.drawings = Drawings(load_emoji(run.emoji))
        self.tokenizer = CLIPTokenizer.from_pretrained(run.tokenizer)
        self.vae = load_vae(run.vae)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled latents (count, 4, 16, 16) and token ids (count, WORDINGS, 77)."""
        scenes = [draw_training_scene(self.rng) for _ in range(count)]
        tokens = [
            tokenize(self.tokenizer, [caption_scene(scene, self.rng) for _ in range(WORDINGS)]) for scene in scenes
        ]
        return encode_scenes(self.vae, scenes, self.drawings), torch.stack(tokens)


def load_vae(path: Path) -> AutoencoderKL:
    """The VAE in evaluation mode."""
    vae = build_vae()
    vae.load_state_dict(torch.load(path)["vae"])
    vae = vae.eval().requires_grad_(False)
    vae.to(memory_format=torch.channels_last)  # with parts of two images: 0.10 s an image, not 0.16
    return vae


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids (B, 77), padded with the end token as in SD1."""
    encoded = tokenizer(captions, padding="max_length", max_length=77, truncation=True)
    return torch.tensor(encoded["input_ids"])


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, scenes: list[Scene], drawings: Drawings) -> torch.Tensor:
    """Scaled latents (B, 4, 16, 16) of rendered scenes."""
    images = [torch.from_numpy(np.array(render_scene(s, drawings))) for s in scenes]
    pixels = tensor_from_images(images).contiguous(memory_format=torch.channels_last)
    parts = in_parts(pixels, 2)
    return torch.cat([vae.encode(part).latent_dist.mode() for part in parts]) * SCALE_FACTOR


def _encode_worker(rank: int, run: UnetRun) -> None:
    source = SceneSource(run, run.seed * 1000 + rank)
    parts = []
    started = time.time()
    for done in range(0, run.scenes_per_process, 50):
        parts.append(source.draw(50))
        if rank == 0 and done % 500 == 0:
            print(f"latents {done} {time.time() - started:.0f}s", flush=True)
    latents, tokens = (torch.cat(group) for group in zip(*parts, strict=True))
    save_atomically(run.work / f"latents-{rank}.pt", {"latents": latents.half(), "tokens": tokens})


def encode_latents(run: UnetRun) -> None:
    """Encode the first scenes of each process to ``latents-<rank>.pt``."""
    run_in_processes(_encode_worker, run, processes=run.processes)


class LatentPool:
    """The latents one process trains on; grows by fresh scenes while training runs."""

    def __init__(self, run: UnetRun, rank: int, step: int) -> None:
        stored = torch.load(run.work / f"latents-{rank}.pt")
        self.latents = [stored["latents"]]
        self.tokens = [stored["tokens"]]
        self.source = SceneSource(run, (run.seed + step) * 1000 + 500 + rank)
        self.empty = tokenize(self.source.tokenizer, [""])[0]
        self.generator = torch.Generator().manual_seed(run.seed * 1000 + rank)

    def grow(self, count: int) -> None:
        """Add ``count`` freshly drawn scenes."""
        latents, tokens = self.source.draw(count)
        self.latents.append(latents.half())
        self.tokens.append(tokens)
        if len(self.latents) > 16:
            self.latents = [torch.cat(self.latents)]
            self.tokens = [torch.cat(self.tokens)]

    def draw(self, count: int, empty_share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of latents (B, 4, 16, 16) float32 and tokens (B, 77), some captions emptied."""
        latents, tokens = self.latents[0], self.tokens[0]
        rows = torch.randint(len(latents), (count,), generator=self.generator)
        wording = torch.randint(WORDINGS, (count,), generator=self.generator)
        chosen = tokens[rows, wording].clone()
        emptied = torch.rand(count, generator=self.generator) < empty_share
        chosen[emptied] = self.empty
        return latents[rows].float(), chosen


def build_networks(seed: int) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Freshly initialised UNet and text encoder.

    CLIP's own initial scales (tokens 0.02) let a shared direction drown the tokens within
    300 steps: contexts of different captions then differed by 0.4%. So tokens start at 0.5,
    and values four times larger than CLIP's let the padding carry the caption's words.
    Tokens never trained, a LoRA's trigger word for one, stay as distinct as the trained ones.
    """
    torch.manual_seed(seed)
    unet, text_encoder = build_unet(), build_text_encoder()
    zero_last_layers(unet, ("conv2",))
    with torch.no_grad():
        for name, value in text_encoder.named_parameters():
            if "token_embedding" in name:
                value.normal_(std=0.5)
            if "position_embedding" in name:
                value.normal_(std=0.1)
            if name.endswith("v_proj.weight"):
                value *= 4
    return unet, text_encoder


def build_optimisers(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, rate: float
) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the UNet's inner matrices, AdamW for the rest; groups know their ``peak`` rate.

    The text encoder waits (``TEXT_WAITS``): random tokens are distinct enough, and while the
    UNet does not use them yet, gradients only push them together. No weight decay:
    it would shrink unused tokens.
    """
    ends = ("conv_in.", "conv_out.")
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in unet.named_parameters():
        (others if parameter.ndim < 2 or name.startswith(ends) else matrices).append(parameter)
    groups = [
        {"params": others, "peak": rate, "wait": 0.0},
        {"params": list(text_encoder.parameters()), "peak": rate * 0.3, "wait": TEXT_WAITS},
    ]
    muon = Muon(matrices, rate * RATE_PER_ADAM_RATE)
    muon.param_groups[0] |= {"peak": rate * RATE_PER_ADAM_RATE, "wait": 0.0}
    return muon, torch.optim.AdamW(groups, rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)


@dataclass
class _Training:
    """The mutable state of one process of the UNet stage."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    optimisers: tuple[torch.optim.Optimizer, ...]
    ema_unet: Ema
    ema_text: Ema
    step: int = 0
    earlier_seconds: float = 0.0

    def to_dict(self, seconds: float) -> dict[str, Any]:
        return {
            "unet": self.unet.state_dict(),
            "text": self.text_encoder.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "ema_unet": self.ema_unet.weights,
            "ema_text": self.ema_text.weights,
            "step": self.step,
            "seconds": seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.unet.load_state_dict(state["unet"])
        self.text_encoder.load_state_dict(state["text"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.ema_unet.weights, self.ema_text.weights = state["ema_unet"], state["ema_text"]
        self.step, self.earlier_seconds = state["step"], state["seconds"]
        self.ema_unet.steps = self.ema_text.steps = self.step


def _start(run: UnetRun) -> _Training:
    unet, text_encoder = build_networks(run.seed)
    training = _Training(
        unet,
        text_encoder,
        build_optimisers(unet, text_encoder, run.peak_rate),
        Ema(unet, EMA_DECAY),
        Ema(text_encoder, EMA_DECAY),
    )
    if run.state.exists():
        training.restore(torch.load(run.state))
    elif run.start_from:  # its clock starts anew, at the full rate
        training.restore(torch.load(run.start_from) | {"seconds": 0.0})
    text_encoder.requires_grad_(not run.hold_text)
    return training


def _train_worker(rank: int, run: UnetRun) -> None:
    training = _start(run)
    pool = LatentPool(run, rank, training.step)
    torch.manual_seed(run.seed * 100 + rank + training.step)
    check_latents, check_tokens = pool.latents[0][:CHECK_SCENES].float(), pool.tokens[0][:CHECK_SCENES, 0]
    started = last_snapshot = time.time()
    mean_loss, progress = 0.0, training.earlier_seconds / run.seconds
    while progress < 1:
        if run.fresh_per_step and training.step % 4 == 0:
            pool.grow(run.fresh_per_step * 4)
        for group in (group for optimiser in training.optimisers for group in optimiser.param_groups):
            group["lr"] = cosine_rate(group["peak"], progress) * (progress >= group["wait"])
        loss = _train_step(training, pool.draw(run.batch_per_process, run.empty_share))
        elapsed = torch.tensor([training.earlier_seconds + time.time() - started])
        average_across_processes([*gradients_of(training.unet, training.text_encoder), elapsed])
        torch.nn.utils.clip_grad_norm_([*training.unet.parameters(), *training.text_encoder.parameters()], 1.0)
        for optimiser in training.optimisers:
            optimiser.step()
        training.ema_unet.update(training.unet)
        training.ema_text.update(training.text_encoder)
        training.step += 1
        progress = elapsed.item() / run.seconds
        mean_loss = mean_loss * 0.98 + loss * 0.02 if mean_loss else loss
        if rank == 0 and training.step % 25 == 0:
            print(f"unet {training.step} {elapsed.item():.0f}s loss {mean_loss:.4f}", flush=True)
        if rank == 0 and training.step % 200 == 0:
            gap = caption_gap(training.unet, training.text_encoder, check_latents, check_tokens)
            print(f"gap {training.step} right {gap[0]:.5f} wrong {gap[1]:.5f}", flush=True)
        if rank == 0 and (progress >= 1 or time.time() - last_snapshot > run.snapshot_every):
            last_snapshot = time.time()
            save_atomically(run.state, training.to_dict(elapsed.item()))
            write_snapshot(run, training.ema_unet.weights, training.ema_text.weights, training.step)


def _train_step(training: _Training, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Forward and backward of one batch; returns its weighted loss."""
    latents, tokens = batch
    alphas = alphas_cumprod()
    timesteps = draw_timesteps(timestep_density(alphas), len(latents))
    context = training.text_encoder(tokens).last_hidden_state
    errors = noise_errors(training.unet, latents, context, timesteps, torch.randn_like(latents))
    loss = (loss_weights(alphas)[timesteps] * errors).mean()
    for optimiser in training.optimisers:
        optimiser.zero_grad()
    torch.autograd.backward(loss)
    return float(loss.item())


def write_snapshot(run: UnetRun, unet: dict[str, torch.Tensor], text: dict[str, torch.Tensor], step: int) -> None:
    """Write the complete checkpoint of this moment to the snapshot folder."""
    vae = torch.load(run.vae)["vae"]
    path = run.snapshot / "tiny-sd.safetensors"
    save_single_file(path, to_single_file(unet, vae, text), note=f"snapshot after {step} steps")


def train_unet(run: UnetRun) -> None:
    """Train UNet and text encoder until ``run.seconds`` have been spent; resumable."""
    run_in_processes(_train_worker, run, processes=run.processes)
