"""Settings: length, batch size, precision and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.parameters import Group, param

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LORA_PRECISIONS = ("fp32", "bf16", "fp16")
PRIOR_PRESERVATIONS = ("off", "class", "empty", "prompts")


@dataclass(frozen=True)
class TrainingSettings:
    """Length, batch size, precision and memory."""

    GROUP: ClassVar[Group] = "training"

    epochs: int = param(
        10,
        "Number of passes through the dataset (images × repeats). A LoRA file is saved after each, so too many do no "
        "harm: choose the best epoch from the grid.",
        tier="essential",
        low=1,
        high=10_000,
        kohya="max_train_epochs",
    )
    max_steps: int = param(
        0,
        "Stop after this many optimiser steps. 0: no limit, only the epochs count.",
        low=0,
        high=10_000_000,
        kohya="max_train_steps",
    )
    batch_size: int = param(
        2,
        "Number of images per forward pass. Larger batches give steadier training but need more memory; with n times "
        "the batch size, guides raise the learning rate up to n times.",
        tier="essential",
        low=1,
        high=256,
        kohya="train_batch_size",
    )
    gradient_accumulation: int = param(
        1,
        "Number of forward passes per optimiser step. It has the effect of a larger batch without its memory.",
        low=1,
        high=256,
        kohya="gradient_accumulation_steps",
    )
    prior_loss_weight: float = param(
        1.0,
        "Weight of the loss on regularisation images.",
        low=0.0,
        high=10.0,
        kohya="prior_loss_weight",
    )
    prior_preservation: str = param(
        "off",
        "Keep what the model draws without the trigger, with no regularisation images. The LoRA is also trained to "
        "answer other prompts as the model without LoRA does. class: each image's caption with the class word in the "
        "trigger's place; empty: the empty prompt; prompts: those of prior_preservation_prompts. Only prompts like "
        "these are kept. A step takes about two and a half times as long, with the same memory.",
        choices=PRIOR_PRESERVATIONS,
    )
    prior_preservation_prompts: tuple[str, ...] = param(
        (),
        "Prompts to keep if prior_preservation is prompts, one per line. Each image is trained with one of them, drawn "
        "at random. List what the LoRA must not change, such as the class and its neighbours, without the trigger.",
    )
    prior_preservation_weight: float = param(
        1.0,
        "Weight of prior_preservation in the loss. 0.5 to 2 is usual; with more, the concept is learnt more slowly. 0: "
        "off.",
        low=0.0,
        high=100.0,
    )
    masked_prior_preservation_weight: float = param(
        0.0,
        "With masks: weight of keeping the model's own answer outside the mask, where images are not trained. 1 is "
        "usual. A step takes about half as long again. 0: off, and what is outside may change.",
        low=0.0,
        high=100.0,
    )
    validation_share: float = param(
        0.0,
        "Share of each folder's images that is set aside for validation (not from regularisation folders). The loss "
        "on them is measured with the same noise after every epoch and shown in the loss chart. It falls while the "
        "LoRA learns and rises when it only memorises, which the noisy training loss does not show. 0: none. 0.1 is "
        "usual from fifty images on; with fewer than twenty, you need every image for training.",
        low=0.0,
        high=0.5,
        kohya="validation_split",
    )
    seed: int = param(
        42,
        "Seed for all randomness of the run. The same seed and settings give the same LoRA.",
        tier="beginner",
        low=0,
        high=2**53,
        kohya="seed",
    )
    precision: str = param(
        "auto",
        "Number format of the frozen model during training. auto: the checkpoint's own on a graphics card, fp32 on a "
        "CPU. It does not affect the LoRA's weights; see lora_precision.",
        choices=PRECISIONS,
        kohya="mixed_precision",
    )
    lora_precision: str = param(
        "fp32",
        "Number format of the LoRA's weights and gradients during training; bf16 and fp16 are kohya's full_bf16 and "
        "full_fp16. fp32 is exact. bf16 and fp16 need a third less memory during the forward and backward pass, "
        "which matters for large ranks and family full. The optimiser still computes in fp32 and rounds "
        "stochastically, as plain rounding would lose every step smaller than 1/256 of a weight. This makes the LoRA "
        "slightly noisier, so change it only if fp32 does not fit.",
        choices=LORA_PRECISIONS,
    )
    fp8_base: bool = param(
        False,
        "Store the UNet's weights in 8 bits, which halves their memory but makes gradients slightly less accurate. "
        "Only for a checkpoint that the trainer loads itself (stand-alone, or if the webui's own cannot be used). "
        "Use it with gradient_checkpointing, or little is saved.",
        kohya="fp8_base",
    )
    gradient_checkpointing: bool = param(
        False,
        "Recompute activations instead of storing them. Training is a third slower but needs far less memory.",
        tier="beginner",
        kohya="gradient_checkpointing",
    )
    ema_decay: float = param(
        0.0,
        "Save and sample an exponential moving average (EMA) of the LoRA in place of its latest weights; this share "
        "of the average is kept in each step. 0: off. 0.99 averages about the last hundred steps, 0.999 the last "
        "thousand; in a shorter run the average lags behind.",
        low=0.0,
        high=1.0,
    )
