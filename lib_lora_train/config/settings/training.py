"""How long, how much at once, with which numbers."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.parameters import param

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LORA_PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how much at once, with which numbers."""

    epochs: int = param(
        10,
        "How often the whole set (images × repeats) is gone through. A LoRA file is written per epoch, so "
        "too many do no harm: you choose the best one from the grid.",
        group="training",
        tier="essential",
        low=1,
        high=10_000,
        kohya="max_train_epochs",
    )
    max_steps: int = param(
        0,
        "Stop after this many optimiser steps. 0: no limit but the epochs.",
        group="training",
        low=0,
        high=10_000_000,
        kohya="max_train_steps",
    )
    batch_size: int = param(
        2,
        "Images per forward pass. Larger is steadier and needs memory; with n times the batch the guides "
        "raise the learning rate up to n-fold.",
        group="training",
        tier="essential",
        low=1,
        high=256,
        kohya="train_batch_size",
    )
    gradient_accumulation: int = param(
        1,
        "Forward passes per optimiser step: the effect of a larger batch without its memory.",
        group="training",
        low=1,
        high=256,
        kohya="gradient_accumulation_steps",
    )
    prior_loss_weight: float = param(
        1.0,
        "Weight of the loss on regularisation images.",
        group="training",
        low=0.0,
        high=10.0,
        kohya="prior_loss_weight",
    )
    validation_share: float = param(
        0.0,
        "Share of every folder's images (but regularisation) that is kept from training; the loss on them, with the "
        "same noise each time, is measured after every epoch and drawn into the loss chart. It falls while the LoRA "
        "learns and rises when it only memorises, which the jumping training loss hides. 0: none. 0.1 is usual with "
        "fifty images and more; with fewer than twenty each one is missed.",
        group="training",
        low=0.0,
        high=0.5,
        kohya="validation_split",
    )
    seed: int = param(
        42,
        "All randomness of the run follows from it: the same seed and settings give the same LoRA.",
        group="training",
        tier="beginner",
        low=0,
        high=2**53,
        kohya="seed",
    )
    precision: str = param(
        "auto",
        "Number format of the frozen model while training. auto: the checkpoint's own on a graphics card, fp32 on a "
        "processor. The LoRA's own numbers are fp32 whatever is chosen here; see lora_precision.",
        group="training",
        choices=PRECISIONS,
        kohya="mixed_precision",
    )
    lora_precision: str = param(
        "fp32",
        "Number format of the LoRA's own numbers and gradients while training; bf16 and fp16 are kohya's full_bf16 and "
        "full_fp16. fp32 is exact. bf16 and fp16 take a third less memory while images are computed, which matters "
        "for large ranks and for family full; the optimiser still computes in fp32 and its result is rounded up or "
        "down at random (stochastic rounding), since plain rounding would lose every step smaller than 1/256 of a "
        "number. The LoRA becomes slightly noisier: raise the rank only if fp32 does not fit.",
        group="training",
        choices=LORA_PRECISIONS,
    )
    fp8_base: bool = param(
        False,
        "Store the UNet's weights in 8 bit where a copy of the checkpoint is read (stand-alone, or where the webui's "
        "own cannot be used): half the memory, slightly rougher gradients. Use it with gradient_checkpointing, or "
        "little is saved.",
        group="training",
        kohya="fp8_base",
    )
    gradient_checkpointing: bool = param(
        False,
        "Compute activations twice instead of keeping them: a third slower, far less memory.",
        group="training",
        tier="beginner",
        kohya="gradient_checkpointing",
    )
    ema_decay: float = param(
        0.0,
        "Save and draw with a running mean of the LoRA instead of its last step: after each step this share of the "
        "mean stays. 0: off. 0.99 evens out the last hundred steps, 0.999 the last thousand; in a shorter run the mean "
        "stays behind.",
        group="training",
        low=0.0,
        high=1.0,
    )
