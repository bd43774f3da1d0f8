"""Compares our training step with a plain one of diffusers, peft and torch on the same inputs.

    python -m benchmarks.parity.against_diffusers [--steps 50]

Both get identical latents, noise, timesteps, text outputs and initial LoRA. The reference follows the diffusers
examples: `UNet2DConditionModel`, peft's LoRA layers, `DDPMScheduler`, `torch.optim.AdamW`, and one batch
instead of our accumulation. Expected in fp32, for epsilon and v: the first step's loss within 1e-5 (relative), and a
cosine of ΔW of at least 0.999 after 50 steps.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.models.architecture import ModelSpec, PredictionType
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.noise_schedule import schedule_for
from lib_lora_train.models.text_encoding import TextCondition
from lib_lora_train.training.grad_scaling import clip_gradients
from lib_lora_train.training.loss import LossOptions
from lib_lora_train.training.optimizers import make_optimizer
from lib_lora_train.training.step import Batch, batch_loss

RANK, ALPHA, RATE, GAMMA, CLIP, DECAY = 4, 2.0, 1e-3, 5.0, 1.0, 0.01
SAMPLES, MICRO = 4, 2  # samples per optimiser step, and per micro-batch of ours
UNET_CONFIG: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


@dataclass(frozen=True)
class Inputs:
    """The random inputs of one optimiser step, float32: latents and noise (N, 4, 8, 8), text (N, 77, 24)."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor


@dataclass(frozen=True)
class Outcome:
    """Losses per step, and the trained updates by module name."""

    losses: list[float]
    updates: dict[str, Tensor]


def draw_inputs(steps: int, *, seed: int = 0) -> list[Inputs]:
    """One `Inputs` per step."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return [
        Inputs(
            normal(SAMPLES, 4, 8, 8),
            normal(SAMPLES, 4, 8, 8),
            torch.randint(0, 1000, (SAMPLES,), generator=generator),
            normal(SAMPLES, 77, 24),
        )
        for _ in range(steps)
    ]


def small_model(prediction_type: PredictionType) -> DiffusionModel:
    """A model with only a small random UNet; text outputs are inputs."""
    spec = ModelSpec("sd1", prediction_type, False, 0.18215, UNET_CONFIG, {}, ())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**UNET_CONFIG).eval().requires_grad_(False)
    return DiffusionModel(spec, unet, None, (), (), schedule_for(spec), "small", "")


# --- ours ---------------------------------------------------------------------------------------


def train_ours(model: DiffusionModel, adapter: Adapter, steps: list[Inputs]) -> Outcome:
    """Train with our own step: micro-batches, fused LoRA, flat parameters."""
    stepper = make_optimizer(adapter.groups, {"unet": RATE}, config=TrainConfig(optimizer_args=f"weight_decay={DECAY}"))
    losses = []
    for inputs in steps:
        total = 0.0
        for start in range(0, SAMPLES, MICRO):
            loss = _our_loss(model, inputs, slice(start, start + MICRO)) / SAMPLES
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        clip_gradients(adapter.groups["unet"], CLIP)
        stepper.step(1.0)
        losses.append(total)
    return Outcome(losses, {name: layer.diff_weight() for name, layer in _adapted(model.unet).items()})


def _our_loss(model: DiffusionModel, inputs: Inputs, part: slice) -> Tensor:
    batch = Batch(
        latents=inputs.latents[part],
        noise=inputs.noise[part],
        input_noise=inputs.noise[part],
        timesteps=inputs.timesteps[part],
        prior_weights=torch.ones(MICRO).double(),
        sizes=torch.zeros(MICRO, 6),
        captions=(),
    )
    return batch_loss(model, batch, TextCondition(inputs.text[part], None), LossOptions(min_snr_gamma=GAMMA))


def _adapted(unet: nn.Module) -> dict[str, AdaptedLayer]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, AdaptedLayer)}


# --- the reference ------------------------------------------------------------------------------


def train_reference(start: dict[str, dict[str, Tensor]], steps: list[Inputs], kind: PredictionType) -> Outcome:
    """Train with diffusers, peft and torch, from the same initial LoRA, module name → its tensors."""
    unet = small_model(kind).unet
    inject_adapter_in_model(
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(start), init_lora_weights=False), unet
    )
    layers = {name: unet.get_submodule(name) for name in start}
    for name, layer in layers.items():
        layer.lora_A["default"].weight.data.copy_(start[name]["lora_down.weight"])
        layer.lora_B["default"].weight.data.copy_(start[name]["lora_up.weight"])
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind, clip_sample=False
    )
    losses = []
    for inputs in steps:
        loss = _reference_loss(unet, scheduler, inputs)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return Outcome(losses, {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()})


def _reference_loss(unet: Any, scheduler: Any, inputs: Inputs) -> Tensor:
    """The loss as in diffusers' train_text_to_image_lora.py, including min-SNR."""
    noisy = scheduler.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
    answer = unet(noisy, inputs.timesteps, inputs.text).sample
    is_v = scheduler.config.prediction_type == "v_prediction"
    wanted = scheduler.get_velocity(inputs.latents, inputs.noise, inputs.timesteps) if is_v else inputs.noise
    alphas = scheduler.alphas_cumprod[inputs.timesteps]
    snr = alphas / (1 - alphas)
    weights = torch.minimum(snr, torch.full_like(snr, GAMMA)) / (snr + 1 if is_v else snr)
    errors = nn.functional.mse_loss(answer, wanted, reduction="none").mean(dim=(1, 2, 3))
    loss: Tensor = (errors * weights).mean()
    return loss


# --- comparing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """`loss_error`: relative, of the first step; `cosine` of all updates as one vector; `size_ratio`: ours / theirs."""

    loss_error: float
    cosine: float
    size_ratio: float


def compare(kind: PredictionType, steps: int) -> Comparison:
    """Run both on the same inputs and compare them."""
    inputs = draw_inputs(steps)
    model = small_model(kind)
    adapter = inject(model, AdapterSpec(rank=RANK, alpha=ALPHA, targets="all", unet=True, text_encoder=False), seed=1)
    start = {name: layer.state() for name, layer in _adapted(model.unet).items()}
    ours = train_ours(model, adapter, inputs)
    theirs = train_reference(start, inputs, kind)
    mine = torch.cat([update.flatten().double() for update in ours.updates.values()])
    other = torch.cat([theirs.updates[name].flatten().double() for name in ours.updates])
    return Comparison(
        loss_error=abs(ours.losses[0] / theirs.losses[0] - 1),
        cosine=float(mine @ other / (mine.norm() * other.norm())),
        size_ratio=float(mine.norm() / other.norm()),
    )


def main() -> None:
    """Print the comparison for both prediction types; exit code 1 if they differ more than expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps
    kinds: tuple[PredictionType, ...] = ("epsilon", "v_prediction")
    kept = True
    for kind in kinds:
        found = compare(kind, steps)
        kept &= found.loss_error <= 1e-5 and found.cosine >= 0.999
        print(f"{kind}: first loss off by {found.loss_error:.1e}; after {steps} steps", end=" ")
        print(f"cosine {found.cosine:.6f}, size ratio {found.size_ratio:.6f}")
    raise SystemExit(0 if kept else 1)


if __name__ == "__main__":
    main()
