"""Turns the embedded tiny model into a rectified flow in minutes, and compares how a LoRA learns the demo on both.

    python benchmarks/rectified_flow.py make [--out DIR] [--seconds 300]
    python benchmarks/rectified_flow.py train rectified_flow|epsilon [--out DIR]

`make` writes DIR/tiny-rectified-flow.safetensors. It needs no images: the tiny model draws captions like those that it
was trained on, and a copy of its UNet learns the direction noise − x₀ from it. Where both have the same
signal-to-noise ratio, the tiny model's noise ε and image x₀ for x / √((1−σ)² + σ²) give ε − x₀; beyond its last
timestep, at σ = 0.94, the direction is that from the drawn image to the noise. `train` trains the demo's LoRA and
prints its measures and its grid: `share` is how many of 32 images of new prompts and seeds show the concept, `leak`
the same for 6 images of other things.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import GridDrawn
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.checkpoint import load_checkpoint
from lib_lora_train.models.diffusion_model import DiffusionModel, ModelOverrides, assemble, with_overrides
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.models.loading import ModelChoice, load_model
from lib_lora_train.models.noise_schedule import (
    DiffusionSchedule,
    add_noise,
    prediction_target,
    scaled_linear_schedule,
)
from lib_lora_train.models.text_encoding import TextCondition
from lib_lora_train.runs.demo.demo import DemoEvaluator, demo_config
from lib_lora_train.runs.records.folder import new_run_folder
from lib_lora_train.runs.trainer import run_training
from lib_lora_train.sampling.sample import encode_prompts
from lib_lora_train.sampling.samplers import ddim_timesteps, sample_ddim, split_prediction
from lib_lora_train.training.step import predict
from tools.tiny_sd.scenes import caption_scene, draw_training_scene

NAME = "tiny-rectified-flow.safetensors"
IMAGES, BATCH, STEPS, GUIDANCE = 128, 32, 8, 2.5
TRAIN_BATCH, RATE = 8, 1e-3
TIME_STEPS, TIME_RATE = 2000, 2e-3
CONCEPT_SEEDS = tuple(range(1, 9))  # 32 images
Pair = tuple[Tensor, str]
"""A latent (C, h, w) and its caption."""


def draw_pairs(teacher: DiffusionModel) -> list[Pair]:
    """What the tiny model draws for captions of the kind that it was trained on."""
    words = random.Random(0)
    captions = [caption_scene(draw_training_scene(words), words) for _ in range(IMAGES)]
    pairs: list[Pair] = []
    for start in range(0, IMAGES, BATCH):
        batch = captions[start : start + BATCH]
        pairs += zip(_draw(teacher, batch, start), batch, strict=True)
        print(f"drew {len(pairs)} of {IMAGES} images", flush=True)
    return pairs


@torch.no_grad()
def _draw(teacher: DiffusionModel, captions: list[str], seed: int) -> Tensor:
    """Latents (B, C, h, w) by DDIM with guidance."""
    schedule = teacher.schedule
    assert isinstance(schedule, DiffusionSchedule)
    timesteps = ddim_timesteps(schedule, STEPS)
    condition = encode_prompts(teacher, [*captions, *([""] * len(captions))], 1)

    def answer(x: Tensor, index: int) -> Tensor:
        both = predict(teacher, torch.cat([x, x]), torch.full((2 * len(x),), timesteps[index]), condition)
        positive, negative = both.chunk(2)
        return negative + GUIDANCE * (positive - negative)

    noise = torch.randn((len(captions), 4, 16, 16), generator=torch.Generator().manual_seed(seed))
    steps = sample_ddim(answer, noise, schedule, timesteps)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            latents: Tensor = end.value
            return latents


def make(out: Path, seconds: float) -> None:
    """Write the rectified flow."""
    torch.manual_seed(0)
    teacher = load_model(ModelChoice(), torch.device("cpu"))
    student, tensors = _trainable_copy(teacher)
    print(f"time embedding: unexplained share {fit_time_embedding(teacher, student):.5f}", flush=True)
    pairs = draw_pairs(teacher)
    parameters = [parameter.requires_grad_() for parameter in student.unet.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    began, step, mean = time.monotonic(), 0, 0.0
    while (progress := (time.monotonic() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 20) * (1.0 - progress)
        loss = _train_step(teacher, student, pairs)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        now = float(loss.detach())
        step, mean = step + 1, 0.95 * mean + 0.05 * now if step else now
        if step % 50 == 0:
            print(f"step {step}: {time.monotonic() - began:.0f} s, loss {mean:.4f}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    save_file(halves, out / NAME, metadata={"modelspec.prediction_type": "rectified_flow"})
    shutil.copy(EMBEDDED_CHECKPOINT.with_suffix(".yaml"), (out / NAME).with_suffix(".yaml"))
    shutil.copytree(EMBEDDED_CHECKPOINT.parent / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    print(f"{out / NAME}: {step} steps of {TRAIN_BATCH}, {(out / NAME).stat().st_size / 1e6:.1f} MB")


def fit_time_embedding(teacher: DiffusionModel, student: DiffusionModel) -> float:
    """Make the copy embed 1000·σ as the timestep with as much noise; returns the share of the variance that is left.

    What the UNet knows about each noise level then stays in use, and little has to be learnt again.
    """
    ours, theirs = student.unet, teacher.unet
    with torch.no_grad():
        target = theirs.time_embedding(theirs.time_proj(torch.arange(1000)))
        beyond = torch.linspace(float(_SD_SIGMAS[-1]), 1.0, 50)
        waves = ours.time_proj(1000 * torch.cat([_SD_SIGMAS.float(), beyond]))
        target = torch.cat([target, target[-1:].expand(len(beyond), -1)])
    parameters = [parameter.requires_grad_() for parameter in ours.time_embedding.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=TIME_RATE)
    for step in range(TIME_STEPS):
        optimizer.param_groups[0]["lr"] = TIME_RATE * (1.0 - step / TIME_STEPS)
        loss = (ours.time_embedding(waves) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach()) / float(target.var())


def _trainable_copy(teacher: DiffusionModel) -> tuple[DiffusionModel, dict[str, Tensor]]:
    """A copy of the tiny model as a rectified flow, and its tensors, of which its parameters are views."""
    tensors = {name: tensor.float().clone() for name, tensor in load_checkpoint(EMBEDDED_CHECKPOINT).tensors.items()}
    copy = assemble(tensors, spec=teacher.spec, tokenizers=teacher.tokenizers, name="tiny-rectified-flow", file_hash="")
    return with_overrides(copy, ModelOverrides("rectified_flow")), tensors


def _train_step(teacher: DiffusionModel, student: DiffusionModel, pairs: list[Pair]) -> Tensor:
    """The loss of one batch at evenly spread σ, a tenth of them without caption."""
    chosen = random.sample(pairs, TRAIN_BATCH)
    latents, noise = torch.stack([latent for latent, _ in chosen]), torch.randn(TRAIN_BATCH, 4, 16, 16)
    captions = ["" if random.random() < 0.1 else caption for _, caption in chosen]
    with torch.no_grad():
        condition = encode_prompts(student, captions, 1)
        timesteps, theirs = _timesteps()
        noisy = add_noise(student.schedule, latents, noise, timesteps)
        target = prediction_target(student.schedule, latents, noise, timesteps)
        known = theirs >= 0
        if bool(known.any()):
            part = TextCondition(condition.hidden[known], None)
            target[known] = _direction(teacher, noisy[known], theirs[known], timesteps[known], part)
    return (predict(student, noisy, timesteps, condition) - target).square().mean()


def _timesteps() -> tuple[Tensor, Tensor]:
    """Timesteps 1000·σ (B,), and those of the tiny model with the same signal-to-noise ratio, -1 beyond its last."""
    sigmas = (torch.randperm(TRAIN_BATCH) + torch.rand(TRAIN_BATCH)).double() / TRAIN_BATCH
    table = _SD_SIGMAS
    nearest = torch.searchsorted(table, sigmas).clamp(max=len(table) - 1)
    known = sigmas <= table[-1]
    sigmas = torch.where(known, table[nearest], sigmas)
    return 1000 * sigmas, torch.where(known, nearest, -1)


def _sd_sigmas() -> Tensor:
    """σ of Stable Diffusion's timesteps, (1000,): the noise's share of signal and noise together."""
    signal, spread = scaled_linear_schedule("epsilon").mixture(torch.arange(1000))
    return spread / (signal + spread)


_SD_SIGMAS = _sd_sigmas()


def _direction(teacher: DiffusionModel, x: Tensor, at: Tensor, timesteps: Tensor, condition: TextCondition) -> Tensor:
    """ε − x₀ of the tiny model for noisy latents of the flow."""
    assert isinstance(teacher.schedule, DiffusionSchedule)
    sigmas = (timesteps / 1000).float().view(-1, 1, 1, 1)
    scaled = x / ((1 - sigmas).square() + sigmas.square()).sqrt()
    answer = predict(teacher, scaled, at, condition)
    alphas = teacher.schedule.alphas_cumprod[at]
    parts = [
        split_prediction(one, eps, float(alpha), "epsilon")
        for one, eps, alpha in zip(scaled, answer, alphas, strict=True)
    ]
    return torch.stack([noise - image for image, noise in parts])


def train(kind: str, out: Path) -> None:
    """Train the demo's LoRA on the tiny model or on its rectified flow, and print the measures."""
    config: TrainConfig = demo_config()
    if kind == "rectified_flow":
        config = config.replace(checkpoint=str(out / NAME), prediction_type=kind, debiased_estimation=False)
    config = config.replace(output_name=f"zorp-{kind}", sample_every_n_epochs=config.epochs, test_strengths=False)
    evaluator = DemoEvaluator(config, concept_seeds=())
    measured: list[dict[str, float]] = []
    calls = 0

    def measure(model: Any, adapter: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls not in (1, config.epochs + 1):
            return {}
        evaluator.concept_seeds = CONCEPT_SEEDS if calls > 1 else (1,)
        measured.append(evaluator.measure(model, adapter))
        return measured[-1]

    host, began = StandaloneHost(None, None, out / "Lora"), time.monotonic()
    folder = new_run_folder(out, kind)
    for event in run_training(config, host, folder=folder, control=Control(), measure=measure):
        if isinstance(event, GridDrawn):
            print("grid:", event.path)
    print(json.dumps({"kind": kind, "seconds": round(time.monotonic() - began), "measures": measured}, indent=2))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "train"))
    parser.add_argument("kind", nargs="?", default="rectified_flow", choices=("rectified_flow", "epsilon"))
    parser.add_argument("--out", type=Path, default=Path("rectified-flow"))
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    if options.what == "make":
        make(options.out, options.seconds)
    else:
        train(options.kind, options.out)


if __name__ == "__main__":
    main()
