"""The guides' advice as data: for each purpose, the parameters that differ from the defaults.

A preset changes only what it names, so that one for a purpose (Character, Style …) and one for a model or machine
(SDXL, Low VRAM) can be applied one after the other.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora_train.errors import LoraTrainError
from lib_lora_train.settings.optimizer import OPTIMIZERS

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


PRESETS: tuple[Preset, ...] = (
    Preset(
        "Character",
        "For a drawn or rendered character from ten to thirty pictures with tag captions.",
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
        "For the look that many different pictures share: the convolutions learn too, where brush strokes lie.",
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
