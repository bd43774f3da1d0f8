"""Every setting of a training run, declared once.

`TrainConfig` and `Concept` are frozen. `read_config` makes them from plain values (TOML, form, JSON)
and reports all problems together; `judge` (in `judge.py`) looks at combinations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.errors import Problem
from lib_lora_train.parameters import param, read_values

OPTIMIZERS = ("AdamW", "Prodigy")
LOSS_TYPES = ("l2", "l1", "huber", "smooth_l1")
HUBER_SCHEDULES = ("snr", "exponential", "constant")
TIMESTEP_SAMPLINGS = ("uniform", "sigmoid")
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
)
TARGETS = ("attention", "standard", "all")
SAMPLERS = ("DDIM", "Euler", "Euler a")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
SAVE_PRECISIONS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class Concept:
    """One folder of pictures that belong together."""

    folder: str = param(
        "",
        "Folder with the pictures. Sub-folders named N_words (kohya's way: 10_cat) are read with N repeats "
        "each; a plain folder is read with the repeats given here.",
        group="data",
        tier="essential",
        kohya="image_dir",
    )
    repeats: int | None = param(
        None,
        "How often every picture is shown per epoch. Empty: taken from the folder name (N_words), else 1. "
        "Guides aim at images × repeats of 100 to 400 per epoch.",
        group="data",
        tier="essential",
        low=1,
        high=10_000,
        kohya="num_repeats",
    )
    trigger: str = param(
        "",
        "Activation word. It is put first into every caption that does not have it and is never shuffled or "
        "dropped. Choose a rare word that the model does not know yet.",
        group="data",
        tier="essential",
    )
    class_word: str = param(
        "",
        "What the subject is (cat, woman, car). Used with the trigger as the caption where a picture has none.",
        group="data",
        tier="beginner",
        kohya="class_tokens",
    )
    is_regularisation: bool = param(
        False,
        "Regularisation pictures show what the model must not forget: the class without the concept. They are "
        "trained with the prior loss weight, and never get the trigger.",
        group="data",
        tier="beginner",
        kohya="is_reg",
    )


@dataclass(frozen=True)
class TrainConfig:
    """A whole run. Every field is a parameter but `concepts`, which are declared by `Concept`."""

    concepts: tuple[Concept, ...] = ()

    # --- model ---------------------------------------------------------------------------------
    checkpoint: str = param(
        "",
        "Checkpoint file to train on. Empty: the one the webui has loaded (stand-alone: the embedded tiny model).",
        group="model",
        tier="essential",
        kohya="pretrained_model_name_or_path",
    )
    vae: str = param(
        "", "VAE file to use instead of the checkpoint's own. Empty: the checkpoint's.", group="model", kohya="vae"
    )
    clip_skip: int = param(
        1,
        "Which text-encoder layer is used, counted from the end. 1 for photographs and most models, 2 for anime "
        "models. Use the value you will generate with; SDXL ignores it.",
        group="model",
        tier="beginner",
        low=1,
        high=12,
        kohya="clip_skip",
    )

    # --- data ----------------------------------------------------------------------------------
    resolution: int = param(
        512,
        "Side of the square whose area every picture is brought to. 512 for SD1, 768 for SD2 and big SD1 runs, "
        "1024 for SDXL. More needs memory with its square and teaches nothing the pictures do not have.",
        group="data",
        tier="essential",
        low=64,
        high=2048,
        unit="px",
        kohya="resolution",
    )
    enable_buckets: bool = param(
        True,
        "Keep the pictures' aspect ratios: each goes to the bucket with the nearest one. Off: a square is cut "
        "from the middle.",
        group="data",
        tier="beginner",
        kohya="enable_bucket",
    )
    min_bucket: int = param(
        256, "Shortest side of a bucket.", group="data", low=64, high=2048, unit="px", kohya="min_bucket_reso"
    )
    max_bucket: int = param(
        1024, "Longest side of a bucket.", group="data", low=64, high=4096, unit="px", kohya="max_bucket_reso"
    )
    bucket_step: int = param(
        64,
        "Bucket sides are multiples of this. A smaller step cuts less away and fills fewer batches.",
        group="data",
        low=8,
        high=256,
        unit="px",
        kohya="bucket_reso_steps",
    )
    bucket_no_upscale: bool = param(
        False,
        "Never enlarge a small picture: its bucket is its own size, rounded down to the step.",
        group="data",
        kohya="bucket_no_upscale",
    )
    cache_to_disk: bool = param(
        True,
        "Keep encoded pictures on disk between runs. They are found again by content, so a changed picture, "
        "size or VAE is never confused with an old one.",
        group="data",
        kohya="cache_latents_to_disk",
    )

    # --- captions ------------------------------------------------------------------------------
    caption_extension: str = param(
        ".txt",
        "File ending of the captions beside the pictures. `.caption` is looked for as well.",
        group="captions",
        kohya="caption_extension",
    )
    shuffle_captions: bool = param(
        False,
        "Shuffle the comma-separated tags anew each time, so that their order is not learnt. For tag captions, "
        "not for sentences.",
        group="captions",
        tier="beginner",
        kohya="shuffle_caption",
    )
    keep_tokens: int = param(
        1,
        "How many tags at the front are never shuffled or dropped; the trigger word stands there.",
        group="captions",
        tier="beginner",
        low=0,
        high=32,
        kohya="keep_tokens",
    )
    caption_dropout: float = param(
        0.0,
        "Share of pictures shown with an empty caption. 0.05 to 0.1 helps a style; a concept needs its trigger: 0.",
        group="captions",
        low=0.0,
        high=1.0,
        kohya="caption_dropout_rate",
    )

    # --- training ------------------------------------------------------------------------------
    epochs: int = param(
        10,
        "How often the whole set (pictures × repeats) is gone through. A LoRA file is written per epoch, so "
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
        "Pictures per forward pass. Larger is steadier and needs memory; with n times the batch the guides "
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
    learning_rate: float = param(
        1e-4,
        "Step width of the optimiser. AdamW: 1e-4 is the guides' start, above 5e-4 pictures burn. Prodigy finds "
        "its own: leave it at 1.",
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
    optimizer: str = param(
        "AdamW",
        "AdamW is the reliable standard. Prodigy finds the learning rate itself (set it to 1); it needs more memory.",
        group="training",
        tier="essential",
        choices=OPTIMIZERS,
        kohya="optimizer_type",
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
        "and falls at the end (lr_decay). The guides take cosine; constant where the length is not known yet.",
        group="training",
        tier="beginner",
        choices=LR_SCHEDULES,
        kohya="lr_scheduler",
    )
    warmup: float = param(
        0.0,
        "Over how many steps the learning rate rises from 0: below 1 a share of all steps (0.05 = 5 %), from 1 on "
        "a number of steps.",
        group="training",
        low=0.0,
        high=100_000.0,
        kohya="lr_warmup_steps",
    )
    lr_decay: float = param(
        0.1,
        "For warmup_stable_decay: over how many steps at the end the learning rate falls: below 1 a share of all "
        "steps, from 1 on a number of steps. 0.1 to 0.2 is usual (Hu et al. 2024); 0: it never falls, and the last "
        "steps leave the LoRA rough.",
        group="training",
        low=0.0,
        high=100_000.0,
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
    prior_loss_weight: float = param(
        1.0,
        "Weight of the loss on regularisation pictures.",
        group="training",
        low=0.0,
        high=10.0,
        kohya="prior_loss_weight",
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
        "processor. The LoRA itself is always trained in fp32.",
        group="training",
        choices=PRECISIONS,
        kohya="mixed_precision",
    )
    gradient_checkpointing: bool = param(
        False,
        "Compute activations twice instead of keeping them: a third slower, far less memory.",
        group="training",
        tier="beginner",
        kohya="gradient_checkpointing",
    )

    # --- noise and loss ------------------------------------------------------------------------
    min_snr_gamma: float = param(
        0.0,
        "Lowers the weight of nearly noise-free timesteps (Hang et al. 2023); 5 is the paper's and the guides' value. "
        "0: off, every timestep weighs the same.",
        group="noise",
        tier="beginner",
        low=0.0,
        high=20.0,
        kohya="min_snr_gamma",
    )
    debiased_estimation: bool = param(
        False,
        "Weighs timesteps so that the error of the picture counts by √SNR (Yu et al. 2023): noisy timesteps weigh "
        "more, nearly noise-free ones less. An alternative to min_snr_gamma; with both, clean timesteps, which hold "
        "the details, are all but ignored.",
        group="noise",
        kohya="debiased_estimation_loss",
    )
    scale_v_pred_loss_like_noise_pred: bool = param(
        False,
        "For checkpoints that predict v: weighs timesteps as a noise-predicting checkpoint does, by SNR / (SNR + 1), "
        "which puts details before composition. min_snr_gamma and debiased_estimation do so themselves.",
        group="noise",
        kohya="scale_v_pred_loss_like_noise_pred",
    )
    v_pred_like_loss: float = param(
        0.0,
        "For checkpoints that predict noise: adds so many times the loss that a v-predicting checkpoint would have, "
        "which puts composition before details. 0.1 to 1; above, the noisiest timesteps decide everything. 0: off.",
        group="noise",
        low=0.0,
        high=10.0,
        kohya="v_pred_like_loss",
    )
    loss_type: str = param(
        "l2",
        "How the difference to the target counts. l2: by its square, the standard. l1: as it is, so that outliers "
        "(watermarks, mislabelled pictures) pull less, and fine texture too. huber and smooth_l1: square for small "
        "differences and straight for large ones.",
        group="noise",
        choices=LOSS_TYPES,
        kohya="loss_type",
    )
    huber_schedule: str = param(
        "snr",
        "For huber and smooth_l1: how the bound between small and large differences goes from 1 at noise-free "
        "timesteps to huber_c at the noisiest: by the signal-to-noise ratio, exponentially with the timestep, or "
        "constant: huber_c everywhere.",
        group="noise",
        choices=HUBER_SCHEDULES,
        kohya="huber_schedule",
    )
    huber_c: float = param(
        0.1,
        "For huber and smooth_l1: the bound between small and large differences at the noisiest timesteps. 0.1 is "
        "usual; near 1 it is nearly l2, at 0.01 nearly l1, and huber's gradients become as small.",
        group="noise",
        low=0.001,
        high=1.0,
        kohya="huber_c",
    )
    noise_offset: float = param(
        0.0,
        "Adds a shift of the whole picture's brightness to the noise, so that very dark and bright pictures can be "
        "learnt. 0.03 to 0.1; above, colours drift. 0: off.",
        group="noise",
        low=0.0,
        high=1.0,
        kohya="noise_offset",
    )
    noise_offset_random_strength: bool = param(
        False,
        "Draws the strength of the noise offset anew for every sample, from 0 to noise_offset: milder, so that up to "
        "0.15 can be set without colours drifting.",
        group="noise",
        kohya="noise_offset_random_strength",
    )
    adaptive_noise_scale: float = param(
        0.0,
        "Adds so many times each latent channel's mean (without its sign) to noise_offset: very dark and bright "
        "pictures get more of it. A tenth of noise_offset up to as much; negative: they get less. Large values drift "
        "like a large noise_offset. 0: off.",
        group="noise",
        low=-1.0,
        high=1.0,
        kohya="adaptive_noise_scale",
    )
    multires_noise_iterations: int = param(
        0,
        "Mixes coarser and coarser noise into the noise (pyramid noise, Whitaker 2023), so that large areas can become "
        "darker or brighter. 6 to 10 is usual; noise_offset is the simpler cure for the same. 0: off.",
        group="noise",
        low=0,
        high=32,
        kohya="multires_noise_iterations",
    )
    multires_noise_discount: float = param(
        0.3,
        "How much each coarser layer of multires noise weighs against the one before. 0.1 to 0.3 for a LoRA; at 0.8 "
        "and above the noise is mostly blots, which small sets learn as blotches.",
        group="noise",
        low=0.0,
        high=1.0,
        kohya="multires_noise_discount",
    )
    ip_noise_gamma: float = param(
        0.0,
        "Input perturbation (Ning et al. 2023): the UNet gets the picture with so much more noise than it is asked to "
        "predict, so that it learns to bear its own errors when drawing. 0.05 to 0.15, 0.1 is the paper's; above, "
        "pictures lose contrast and detail. 0: off.",
        group="noise",
        low=0.0,
        high=1.0,
        kohya="ip_noise_gamma",
    )
    ip_noise_gamma_random_strength: bool = param(
        False,
        "Draws the strength of the input perturbation anew for every sample, from 0 to ip_noise_gamma.",
        group="noise",
        kohya="ip_noise_gamma_random_strength",
    )
    min_timestep: int = param(
        0,
        "First timestep that is trained on; 0 is nearly noise-free. Low timesteps hold texture and detail, high ones "
        "composition and colour; what lies outside the range is not learnt.",
        group="noise",
        low=0,
        high=999,
        kohya="min_timestep",
    )
    max_timestep: int = param(
        1000,
        "Timesteps below this are trained on; 1000 includes pure noise. Leave the whole range 0 to 1000 unless only "
        "details (to about 500) or only composition (from about 500) is to be learnt.",
        group="noise",
        low=1,
        high=1000,
        kohya="max_timestep",
    )
    timestep_sampling: str = param(
        "uniform",
        "How often each timestep of the range is drawn. uniform: all alike, the standard of Stable Diffusion. sigmoid "
        "(logit-normal): mostly the middle, where subjects take shape; the ends are learnt slowly.",
        group="noise",
        choices=TIMESTEP_SAMPLINGS,
        kohya="timestep_sampling",
    )
    sigmoid_scale: float = param(
        1.0,
        "For timestep_sampling sigmoid: how wide the timesteps spread. 1 is usual; 0.5 keeps to the middle half, from "
        "2 on the two ends are drawn most.",
        group="noise",
        low=0.1,
        high=5.0,
        kohya="sigmoid_scale",
    )
    sigmoid_mean: float = param(
        0.0,
        "For timestep_sampling sigmoid: where most timesteps lie: 0 the middle of the range, 1 to 73 % of it "
        "(noisier: composition), -1 to 27 % (details). Beyond 2, one end is all that is learnt.",
        group="noise",
        low=-5.0,
        high=5.0,
    )

    # --- network -------------------------------------------------------------------------------
    rank: int = param(
        16,
        "Rank of the low-rank update (network dim): how much the LoRA can hold; the file grows with it. 8 to 32 for a "
        "character or concept, up to 128 for a style.",
        group="network",
        tier="essential",
        low=1,
        high=1024,
        kohya="network_dim",
    )
    alpha: float | None = param(
        None,
        "The update is scaled by alpha / rank. Empty: as large as the rank (scale 1). A smaller alpha needs a larger "
        "learning rate.",
        group="network",
        tier="essential",
        low=0.001,
        high=1024.0,
        kohya="network_alpha",
    )
    targets: str = param(
        "standard",
        "Which layers get a LoRA. attention: attention projections only. standard: attention and feed-forward blocks, "
        "what kohya calls LoRA. all: convolutions too (LoCon), for styles.",
        group="network",
        tier="beginner",
        choices=TARGETS,
    )
    train_unet: bool = param(True, "Train a LoRA on the UNet, which draws.", group="network", tier="beginner")
    train_text_encoder: bool = param(
        True,
        "Train a LoRA on the text encoder, which reads the prompt: new words are learnt faster, and spoil other words "
        "sooner.",
        group="network",
        tier="beginner",
    )

    # --- output --------------------------------------------------------------------------------
    output_name: str = param(
        "my-lora",
        "File name of the LoRA, without folder and ending. Epochs are numbered: NAME-000001.safetensors.",
        group="output",
        tier="essential",
        kohya="output_name",
    )
    output_dir: str = param(
        "",
        "Folder for the LoRA files. Empty: the webui's LoRA folder (stand-alone: models/Lora).",
        group="output",
        kohya="output_dir",
    )
    save_every_n_epochs: int = param(
        1,
        "Write a LoRA file after every so many epochs; the last epoch is always written.",
        group="output",
        tier="beginner",
        low=1,
        high=10_000,
        kohya="save_every_n_epochs",
    )
    save_precision: str = param(
        "fp16",
        "Number format of the LoRA file. fp16 is what everybody shares; bf16 is less precise; fp32 doubles the size.",
        group="output",
        choices=SAVE_PRECISIONS,
        kohya="save_precision",
    )
    write_card: bool = param(
        True,
        "Write a .json with the activation words and a .png beside each LoRA file: the card that the webui shows.",
        group="output",
    )
    comment: str = param("", "A note that is stored in the LoRA file.", group="output", kohya="training_comment")

    # --- samples -------------------------------------------------------------------------------
    sample_prompts: tuple[str, ...] = param(
        (),
        "One prompt per line, drawn after each epoch and in the grid. kohya's options may follow a prompt: --w width "
        "--h height --d seed --s steps --l cfg scale --n negative prompt.",
        group="samples",
        tier="essential",
        kohya="sample_prompts",
    )
    sample_every_n_epochs: int = param(
        1,
        "Draw samples after every so many epochs. 0: only the grid at the end.",
        group="samples",
        tier="beginner",
        low=0,
        high=10_000,
        kohya="sample_every_n_epochs",
    )
    sample_sampler: str = param(
        "Euler a",
        "Sampler of the samples and the grid.",
        group="samples",
        choices=SAMPLERS,
        kohya="sample_sampler",
    )
    sample_steps: int = param(20, "Sampling steps where a prompt gives none.", group="samples", low=1, high=150)
    sample_cfg: float = param(
        7.0, "Guidance (cfg) scale where a prompt gives none.", group="samples", low=1.0, high=30.0
    )
    make_grid: bool = param(
        True,
        "After the run, draw epochs × prompts into one picture, the first row without LoRA.",
        group="samples",
        tier="beginner",
    )

    @property
    def effective_alpha(self) -> float:
        """`alpha`, or the rank where none was given."""
        return float(self.rank) if self.alpha is None else self.alpha

    def replace(self, **values: Any) -> TrainConfig:
        """A copy with some values changed."""
        return dataclasses.replace(self, **values)


def read_config(values: Mapping[str, Any]) -> tuple[TrainConfig, tuple[Problem, ...]]:
    """The config that plain values describe, and every problem found on the way.

    `values` holds parameter names and, under `concepts`, a list of tables with `Concept`'s names.
    Values with a problem are left at their defaults; callers stop when a problem is an error.
    """
    plain = {name: value for name, value in values.items() if name != "concepts"}
    parsed, problems = read_values(TrainConfig, plain)
    concepts = []
    tables = values.get("concepts", ())
    if not isinstance(tables, (list, tuple)):
        problems.append(Problem("error", "concepts", "is not a list of tables; write [[concepts]] for each folder."))
        tables = ()
    for number, table in enumerate(tables, start=1):
        if not isinstance(table, Mapping):
            problems.append(Problem("error", f"concepts[{number}]", "is not a table."))
            continue
        fields, found = read_values(Concept, table)
        concepts.append(Concept(**fields))
        problems += [Problem(p.level, f"concepts[{number}].{p.where}", p.message) for p in found]
    return TrainConfig(concepts=tuple(concepts), **parsed), tuple(problems)


def steps_of(duration: float, total_steps: int) -> int:
    """A duration in steps: below 1 it is a share of `total_steps`, from 1 on a number of steps; rounded down.

    A share is rounded to a millionth of a step before: 0.29 × 100 is a little less than 29 in binary.
    """
    return int(round(duration * total_steps, 6)) if duration < 1 else int(duration)


def config_values(config: TrainConfig, *, only_changed: bool = False) -> dict[str, Any]:
    """The inverse of `read_config`: plain, JSON-ready values. None stands for "not set"."""
    values = _plain(config, only_changed)
    if config.concepts:
        values["concepts"] = [_plain(concept, True) for concept in config.concepts]
    return values


def _plain(declared: TrainConfig | Concept, only_changed: bool) -> dict[str, Any]:
    values = {}
    for field in dataclasses.fields(declared):
        value = getattr(declared, field.name)
        if "param" in field.metadata and not (only_changed and value == field.default):
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values
