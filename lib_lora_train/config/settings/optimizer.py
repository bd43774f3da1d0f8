"""Settings: optimiser, learning rates and their schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.config.parameters import STEPS_OR_SHARE, Group, param

OPTIMIZERS = tuple(OPTIMIZER_CATALOG)
LR_SCHEDULES = (
    "cosine",
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "adafactor",
)


@dataclass(frozen=True)
class OptimizerSettings:
    """Optimiser, learning rates and their schedule."""

    GROUP: ClassVar[Group] = "training"

    learning_rate: float = param(
        1e-4,
        "How far each optimiser step moves the weights. AdamW: start with 1e-4; above 5e-4 images look overcooked. "
        "Lion: a third to a tenth of that. Prodigy and D-Adaptation find it themselves: leave it at 1.",
        tier="essential",
        low=0.0,
        high=10.0,
        kohya="learning_rate",
    )
    unet_lr: float | None = param(
        None,
        "Learning rate of the UNet. Empty: same as learning_rate.",
        tier="beginner",
        low=0.0,
        high=10.0,
        kohya="unet_lr",
    )
    text_encoder_lr: float | None = param(
        None,
        "Learning rate of the text encoder. Empty: same as learning_rate. Guides use half to a tenth of the UNet's, "
        "as an overtrained text encoder ignores the rest of the prompt.",
        tier="beginner",
        low=0.0,
        high=10.0,
        kohya="text_encoder_lr",
    )
    text_encoder_2_lr: float | None = param(
        None,
        "Learning rate of SDXL's second, larger text encoder. Empty: same as the first. 0: not trained. If it is "
        "much higher than the first one's, the two learn different meanings of a word.",
        low=0.0,
        high=10.0,
    )
    loraplus_unet_ratio: float = param(
        0.0,
        "LoRA+: learning rate multiplier of the UNet's up matrices. 0 or 1: off. The paper uses 16 with a lower "
        "learning rate; 4 is cautious; above 32 images look overcooked.",
        low=0.0,
        high=256.0,
        kohya="loraplus_unet_lr_ratio",
    )
    loraplus_text_encoder_ratio: float = param(
        0.0,
        "LoRA+: learning rate multiplier of the text encoders' up matrices. 0 or 1: off. 4 is cautious; text "
        "encoders overtrain sooner than the UNet.",
        low=0.0,
        high=256.0,
        kohya="loraplus_text_encoder_lr_ratio",
    )
    stop_text_encoder: float = param(
        0.0,
        "When to stop training the text encoders: below 1 a share of all steps (0.5 or 50%), from 1 on a number of "
        "steps. 0: never. A third to a half protects other words; if earlier, a new trigger word may not be learnt.",
        low=0.0,
        high=10_000_000.0,
        unit=STEPS_OR_SHARE,
    )
    optimizer: str = param(
        "AdamW",
        "Optimiser that updates the weights. AdamW is the reliable standard; AdamW8bit is the same with a quarter of "
        "its memory. Lion needs half the memory and a lower learning rate. Adafactor and CAME need almost none. "
        "Prodigy and DAdapt… find the learning rate themselves (set it to 1), but need more memory. "
        "AdamWScheduleFree needs no schedule. Custom: any class, see custom_optimizer.",
        tier="essential",
        choices=OPTIMIZERS,
        kohya="optimizer_type",
    )
    custom_optimizer: str = param(
        "",
        "Optimiser class for optimizer Custom, as `package.Class`, for example `torch.optim.RAdam`. Its package must "
        "be installed, and the class must be a PyTorch optimiser.",
    )
    optimizer_args: str = param(
        "",
        "Extra arguments of the optimiser, as guides write them: `decouple=True weight_decay=0.01 d_coef=0.8 "
        "use_bias_correction=True safeguard_warmup=True betas=0.9,0.99`.",
        kohya="optimizer_args",
    )
    lr_schedule: str = param(
        "cosine",
        "How the learning rate changes after the warm-up. cosine, linear and polynomial (see lr_power) fall to 0. "
        "constant and constant_with_warmup stay the same. cosine_with_restarts returns to the full rate (lr_cycles). "
        "cosine_with_min_lr falls to lr_min_ratio. inverse_sqrt falls slowly (lr_timescale). warmup_stable_decay "
        "falls only at the end (lr_decay). adafactor lets Adafactor choose. Guides use cosine, or constant if the "
        "length of the run is not known yet.",
        tier="beginner",
        choices=LR_SCHEDULES,
        kohya="lr_scheduler",
    )
    warmup: float = param(
        0.0,
        "Length of the warm-up, during which the learning rate rises from 0: below 1 a share of all steps (0.05 or "
        "5%), from 1 on a number of steps. 0.05 to 0.1 is usual; much more leaves little time to learn. Prodigy and "
        "D-Adaptation need none.",
        low=0.0,
        high=100_000.0,
        unit=STEPS_OR_SHARE,
        kohya="lr_warmup_steps",
    )
    lr_decay: float = param(
        0.1,
        "For warmup_stable_decay: length of the decay at the end: below 1 a share of all steps (0.1 or 10%), from 1 "
        "on a number of steps. 0.1 to 0.2 is usual (Hu et al. 2024). 0: no decay, which leaves the LoRA noisy.",
        low=0.0,
        high=100_000.0,
        unit=STEPS_OR_SHARE,
        kohya="lr_decay_steps",
    )
    lr_cycles: int = param(
        1,
        "For cosine_with_restarts: number of cycles from the full learning rate to 0. 3 is usual; 1 is the same as "
        "cosine. Choose an epoch at the end of a cycle, as results are worst just after a restart.",
        low=1,
        high=1000,
        kohya="lr_scheduler_num_cycles",
    )
    lr_power: float = param(
        1.0,
        "For polynomial: the learning rate is (remaining share of the run)^power. 1 is linear; 2 falls sooner, 0.5 "
        "later. Above 4, most is learnt in the first quarter.",
        low=0.1,
        high=10.0,
        kohya="lr_scheduler_power",
    )
    lr_timescale: int | None = param(
        None,
        "For inverse_sqrt: after three times this many steps the learning rate is halved. Empty: the length of the "
        "warm-up, or 10,000 without one. If it is much longer than the run, the rate hardly changes.",
        low=1,
        high=1_000_000,
        kohya="lr_scheduler_timescale",
    )
    lr_min_ratio: float = param(
        0.0,
        "For cosine_with_min_lr, polynomial and warmup_stable_decay: share of the learning rate left at the end. 0.1 "
        "keeps the last epochs learning; near 1 the rate hardly falls.",
        low=0.0,
        high=1.0,
        kohya="lr_scheduler_min_lr_ratio",
    )
    max_grad_norm: float = param(
        1.0,
        "Gradients longer than this norm are clipped, so that outliers do less harm. 0: off.",
        low=0.0,
        high=1000.0,
        kohya="max_grad_norm",
    )
