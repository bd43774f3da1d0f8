"""The guides' advice as data: for each purpose, the parameters that differ from the defaults.

A preset changes only what it names, so that one for a purpose (Character, Style …) and one for a model or machine
(SDXL, Low VRAM) can be applied one after the other.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.settings.optimizer import OPTIMIZERS
from lib_lora_train.core.errors import LoraTrainError

_ADAMW: Mapping[str, Any] = {
    "optimizer": "AdamW",
    "optimizer_args": "",
    "learning_rate": 1e-4,
    "unet_lr": None,
    "text_encoder_lr": 5e-5,
    "lr_schedule": "cosine",
    "warmup": 0.05,
}
_PRODIGY_ARGS = (
    "decouple=True weight_decay=0.01 d_coef=0.8 use_bias_correction=True safeguard_warmup=True betas=0.9,0.99"
)
_FAST_PRODIGY_ARGS = (
    "decouple=True weight_decay=0.01 d_coef=2 use_bias_correction=True safeguard_warmup=True betas=0.9,0.999"
)
_PRODIGY: Mapping[str, Any] = {
    "optimizer": "Prodigy",
    "optimizer_args": _PRODIGY_ARGS,
    "learning_rate": 1.0,
    "unet_lr": None,
    "text_encoder_lr": None,
    "lr_schedule": "cosine",
    "warmup": 0.0,
}
_ADAFACTOR_ARGS = "scale_parameter=False relative_step=False warmup_init=False"
# What the kinds of LoRA differ in; each kind's preset sets all of it, so that it takes another kind's back.
_NETWORK: Mapping[str, Any] = {
    **_ADAMW,
    "family": "lora",
    "rank": 16,
    "alpha": None,
    "targets": "standard",
    "conv_rank": None,
    "conv_alpha": None,
    "dora": False,
    "scalar": False,
    "tucker": False,
    "rank_stabilized": False,
    "lokr_factor": -1,
    "decompose_both": False,
    "full_matrix": False,
    "constraint": 0.0,
    "rescaled": False,
    "dylora_unit": 1,
    "train_norm": False,
}


@dataclass(frozen=True)
class Preset:
    """Advice for one purpose: `when` is a sentence for the user, `values` the parameters to change."""

    name: str
    when: str
    values: Mapping[str, Any]


def likeness(optimizers: Sequence[str]) -> Preset:
    """The guides' rank 96 with alpha 72 for a real face; Adafactor where there is one, else AdamW."""
    when = "For the face of a real person from twenty or more photographs: a large rank holds the small differences"
    values = {**_ADAMW, "rank": 96, "alpha": 72.0, "targets": "standard", "shuffle_captions": False, "clip_skip": 1}
    if "Adafactor" not in optimizers:
        return Preset("Likeness", f"{when} (the guides use Adafactor; AdamW is the nearest here).", values)
    adafactor = {"optimizer": "Adafactor", "optimizer_args": _ADAFACTOR_ARGS, "lr_schedule": "constant"}
    return Preset("Likeness", f"{when}, trained with Adafactor.", {**values, **adafactor})


def kind(name: str, when: str, **values: Any) -> Preset:
    """The guides' settings of a kind of LoRA: family, layers, sizes and rates."""
    return Preset(name, when, {**_NETWORK, **values})


FAMILY_PRESETS: tuple[Preset, ...] = (
    kind("LoRA", "For everything else, and to come back from another kind: small, robust, read by every webui."),
    kind(
        "LoCon",
        "For styles and textures: a LoRA on the convolutions too, which every webui reads.",
        targets="all",
        alpha=8.0,
        conv_rank=8,
        conv_alpha=4.0,
    ),
    kind(
        "DoRA",
        "For a small rank that should act like a larger one; half as slow again.",
        dora=True,
        rank=8,
        alpha=4.0,
        learning_rate=5e-5,
        text_encoder_lr=2.5e-5,
    ),
    kind(
        "LoHa",
        "For several concepts or much detail in a small file.",
        family="loha",
        rank=8,
        alpha=4.0,
    ),
    kind(
        "LoKr",
        "For nearly full fine-tuning in a file no larger than that of a LoRA.",
        family="lokr",
        lokr_factor=8,
        full_matrix=True,
    ),
    kind(
        "DyLoRA",
        "For finding out which rank is enough: the file may be cut at every fourth rank.",
        family="dylora",
        rank=32,
        alpha=16.0,
        dylora_unit=4,
        batch_size=1,
        gradient_accumulation=4,
    ),
    kind(
        "GLoRA",
        "For styles that lie near what the model knows, since its own weights are used again.",
        family="glora",
        rank=8,
        learning_rate=5e-5,
        text_encoder_lr=2.5e-5,
    ),
    kind(
        "IA3",
        "For a style the model nearly knows, in less than a megabyte that A1111 reads and Forge does not.",
        family="ia3",
        targets="all",
        learning_rate=5e-3,
        text_encoder_lr=2e-3,
    ),
    kind(
        "Diag-OFT",
        "For a new look that keeps what the model knows, in a file that A1111 reads and Forge does not.",
        family="oft",
        rank=8,
    ),
    kind(
        "BOFT",
        "For rotations that mix all channels, finer than Diag-OFT, in a file that A1111 reads and Forge does not.",
        family="boft",
        rank=4,
    ),
    kind(
        "Native",
        "For when nothing else is enough: every number of the layers is trained, and the file has gigabytes.",
        family="full",
        learning_rate=5e-6,
        text_encoder_lr=1e-6,
    ),
)

PRESETS: tuple[Preset, ...] = (
    Preset(
        "Character",
        "For a drawn or rendered character from ten to thirty images with tag captions.",
        {
            **_ADAMW,
            "rank": 16,
            "alpha": 8.0,
            "targets": "standard",
            "shuffle_captions": True,
            "keep_tokens": 1,
            "caption_dropout": 0.0,
            "min_snr_gamma": 5.0,
        },
    ),
    Preset(
        "Style",
        "For the look that many different images share: the convolutions learn too, where brush strokes lie.",
        {
            **_ADAMW,
            "rank": 32,
            "alpha": 16.0,
            "targets": "all",
            "shuffle_captions": True,
            "keep_tokens": 1,
            "caption_dropout": 0.05,
            "min_snr_gamma": 5.0,
        },
    ),
    Preset(
        "Concept",
        "For an object, a garment or a pose: small, so that only the concept is learnt and not its surroundings.",
        {
            **_ADAMW,
            "rank": 8,
            "alpha": 4.0,
            "targets": "standard",
            "shuffle_captions": False,
            "caption_dropout": 0.0,
            "min_snr_gamma": 5.0,
        },
    ),
    likeness(OPTIMIZERS),
    Preset(
        "Multi-concept",
        "For several characters or outfits in one file: each shown equally often, with its own trigger, and a rank "
        "that holds them all.",
        {
            **_ADAMW,
            "rank": 32,
            "alpha": 16.0,
            "targets": "standard",
            "balance_repeats": True,
            "shuffle_captions": True,
            "keep_tokens": 1,
            "caption_dropout": 0.0,
            "min_snr_gamma": 5.0,
        },
    ),
    Preset(
        "SDXL",
        "For an SDXL checkpoint: its resolution, the UNet alone, and memory for a card of 12 GiB.",
        {
            "resolution": 1024,
            "min_bucket": 512,
            "max_bucket": 2048,
            "batch_size": 1,
            "gradient_accumulation": 2,
            "gradient_checkpointing": True,
            "train_text_encoder": False,
            "text_encoder_lr": None,
            "clip_skip": 1,
        },
    ),
    Preset(
        "Low VRAM",
        "For a small graphics card: the same training in smaller pieces, which takes longer.",
        {
            "batch_size": 1,
            "gradient_accumulation": 2,
            "gradient_checkpointing": True,
            "train_text_encoder": False,
            "text_encoder_lr": None,
        },
    ),
    Preset(
        "Prodigy",
        "For no guessing of learning rates: Prodigy finds them itself and needs more memory for that.",
        _PRODIGY,
    ),
    Preset(
        "Prodigy fast",
        "For a short run with Prodigy: steps two and a half times as large (d_coef=2), which learn in fewer epochs and "
        "overtrain sooner.",
        {**_PRODIGY, "optimizer_args": _FAST_PRODIGY_ARGS},
    ),
    *FAMILY_PRESETS,
)


def find_preset(name: str) -> Preset:
    """The preset of that name, whatever the case, blanks and hyphens; LoraTrainError with the nearest for another."""
    by_name = {_plain(preset.name): preset for preset in PRESETS}
    if _plain(name) in by_name:
        return by_name[_plain(name)]
    near = difflib.get_close_matches(_plain(name), by_name, 1)
    names = ", ".join(preset.name for preset in PRESETS)
    hint = f"Did you mean {by_name[near[0]].name!r}?" if near else f"There are: {names}."
    raise LoraTrainError(f"There is no preset {name!r}. {hint}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
