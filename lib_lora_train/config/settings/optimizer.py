"""Optimiser, learning rates and how they go on."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.config.parameters import STEPS_OR_SHARE, param

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
    """Optimiser, learning rates and how they go on."""

    learning_rate: float = param(
        1e-4,
        "Step width of the optimiser. AdamW: 1e-4 is the guides' start, above 5e-4 images burn. Lion: a third to a "
        "tenth of that. Prodigy and D-Adaptation find their own: leave it at 1.",
        group="training",
        tier="essential",
        low=0.0,
        high=10.0,
        kohya="learning_rate",
    )
    unet_lr: float | None = param(
        None,
        "Learning rate of the UNet. Empty: the general one.",
        group="training",
        tier="beginner",
        low=0.0,
        high=10.0,
        kohya="unet_lr",
    )
    text_encoder_lr: float | None = param(
        None,
        "Learning rate of the text encoder. Empty: the general one; guides take half to a tenth of the UNet's, "
        "since an overtrained text encoder makes prompts ignore everything else.",
        group="training",
        tier="beginner",
        low=0.0,
        high=10.0,
        kohya="text_encoder_lr",
    )
    text_encoder_2_lr: float | None = param(
        None,
        "Learning rate of SDXL's second, larger text encoder. Empty: that of the first. 0: it stays as it is. Much "
        "more than the first one's makes the two disagree on what a word means.",
        group="training",
        low=0.0,
        high=10.0,
    )
    loraplus_unet_ratio: float = param(
        0.0,
        "LoRA+: the up matrices of the UNet learn so many times faster than the down ones. 0 or 1: off. The paper "
        "takes 16 with a smaller learning rate; 4 is careful, above 32 images burn.",
        group="training",
        low=0.0,
        high=256.0,
        kohya="loraplus_unet_lr_ratio",
    )
    loraplus_text_encoder_ratio: float = param(
        0.0,
        "LoRA+ for the text encoders. 0 or 1: off. 4 is careful; text encoders overtrain sooner than the UNet.",
        group="training",
        low=0.0,
        high=256.0,
        kohya="loraplus_text_encoder_lr_ratio",
    )
    stop_text_encoder: float = param(
        0.0,
        "When the text encoders stop learning and stay as they are: below 1 a share of all steps (0.5 or 50%: after "
        "half of them), from 1 on a number of steps. 0: never. A third to a half keeps other words unspoilt; earlier, "
        "a new trigger word may not be learnt.",
        group="training",
        low=0.0,
        high=10_000_000.0,
        unit=STEPS_OR_SHARE,
    )
    optimizer: str = param(
        "AdamW",
        "AdamW is the reliable standard; AdamW8bit the same with a quarter of its memory. Lion needs half of it and a "
        "smaller rate. Adafactor and CAME need almost none. Prodigy and DAdapt… find the learning rate themselves (set "
        "it to 1) and need more memory. AdamWScheduleFree needs no schedule. Custom: any class, see custom_optimizer.",
        group="training",
        tier="essential",
        choices=OPTIMIZERS,
        kohya="optimizer_type",
    )
    custom_optimizer: str = param(
        "",
        "For optimizer Custom: the class as `package.Class`, for example `torch.optim.RAdam`. Its package must be "
        "installed; only classes of PyTorch's optimisers are taken.",
        group="training",
    )
    optimizer_args: str = param(
        "",
        "Further arguments of the optimiser as the guides write them: "
        "`decouple=True weight_decay=0.01 d_coef=0.8 use_bias_correction=True safeguard_warmup=True betas=0.9,0.99`.",
        group="training",
        kohya="optimizer_args",
    )
    lr_schedule: str = param(
        "cosine",
        "How the learning rate goes on after the warm-up. cosine, linear and polynomial (see lr_power) fall to 0. "
        "constant stays, as constant_with_warmup does. cosine_with_restarts jumps back to the full rate (lr_cycles). "
        "cosine_with_min_lr falls to lr_min_ratio. inverse_sqrt falls slowly (lr_timescale). warmup_stable_decay stays "
        "and falls at the end (lr_decay). adafactor is Adafactor's own, whatever the "
        "learning rate. The guides take cosine; constant where the length is not known yet.",
        group="training",
        tier="beginner",
        choices=LR_SCHEDULES,
        kohya="lr_scheduler",
    )
    warmup: float = param(
        0.0,
        "Over how many steps the learning rate rises from 0: below 1 a share of all steps (0.05 or 5%), from 1 on a "
        "number of steps. 0.05 to 0.1 is usual; much longer, and little is left to learn in. Prodigy and "
        "D-Adaptation need none.",
        group="training",
        low=0.0,
        high=100_000.0,
        unit=STEPS_OR_SHARE,
        kohya="lr_warmup_steps",
    )
    lr_decay: float = param(
        0.1,
        "For warmup_stable_decay: over how many steps at the end the learning rate falls: below 1 a share of all "
        "steps (0.1 or 10%), from 1 on a number of steps. 0.1 to 0.2 is usual (Hu et al. 2024); 0: it never "
        "falls, and the last steps leave the LoRA rough.",
        group="training",
        low=0.0,
        high=100_000.0,
        unit=STEPS_OR_SHARE,
        kohya="lr_decay_steps",
    )
    lr_cycles: int = param(
        1,
        "For cosine_with_restarts: how often the learning rate falls from its full value to 0. 3 is usual; 1 is plain "
        "cosine. Choose an epoch from the end of a cycle: just after a restart the LoRA is at its roughest.",
        group="training",
        low=1,
        high=1000,
        kohya="lr_scheduler_num_cycles",
    )
    lr_power: float = param(
        1.0,
        "For polynomial: the learning rate is (what is left of the run)^power. 1 is linear; 2 falls sooner, 0.5 later. "
        "Above 4 most is learnt in the first quarter.",
        group="training",
        low=0.1,
        high=10.0,
        kohya="lr_scheduler_power",
    )
    lr_timescale: int | None = param(
        None,
        "For inverse_sqrt: after three times so many steps the learning rate is halved. Empty: as long as the warm-up, "
        "or 10,000 without one. Much more than the run has steps is a constant rate.",
        group="training",
        low=1,
        high=1_000_000,
        kohya="lr_scheduler_timescale",
    )
    lr_min_ratio: float = param(
        0.0,
        "For cosine_with_min_lr, polynomial and warmup_stable_decay: the share of the learning rate that is left at "
        "the end. 0.1 keeps the last epochs learning; towards 1 the rate is constant.",
        group="training",
        low=0.0,
        high=1.0,
        kohya="lr_scheduler_min_lr_ratio",
    )
    max_grad_norm: float = param(
        1.0,
        "Longer gradients are shortened to this norm, which tames outliers. 0: off.",
        group="training",
        low=0.0,
        high=1000.0,
        kohya="max_grad_norm",
    )
