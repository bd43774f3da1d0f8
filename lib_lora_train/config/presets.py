"""The guides' advice as presets: the settings that differ from the defaults for a purpose.

A preset changes only its own settings, so that one for a purpose (Character, Style …) and one for a model or machine
(SDXL, Low VRAM) can be combined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.card_presets import CARD_PRESETS
from lib_lora_train.config.settings.optimizer import OPTIMIZERS
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.wording import did_you_mean

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
# All settings in which the LoRA types differ. Each type's preset sets all of them, and so undoes another type's.
_NETWORK: Mapping[str, Any] = {
    **_ADAMW,
    "method": "lora",
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
    """Settings for one purpose: `when` is a sentence for the user, `values` the settings to change.

    `left_out` says what a file of the user has beside them, and why it is not used.
    """

    name: str
    when: str
    values: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def likeness_preset(optimizers: Sequence[str]) -> Preset:
    """The guides' rank 96 with alpha 72 for a real face, with Adafactor if it is in `optimizers`, otherwise AdamW."""
    when = "For the face of a real person, with twenty or more photographs: a large rank for subtle details"
    values = {**_ADAMW, "rank": 96, "alpha": 72.0, "targets": "standard", "shuffle_captions": False, "clip_skip": 1}
    if "Adafactor" not in optimizers:
        return Preset("Likeness", f"{when} (the guides use Adafactor; here AdamW comes closest).", values)
    adafactor = {"optimizer": "Adafactor", "optimizer_args": _ADAFACTOR_ARGS, "lr_schedule": "constant"}
    return Preset("Likeness", f"{when}, trained with Adafactor.", {**values, **adafactor})


def _family_preset(name: str, when: str, **values: Any) -> Preset:
    """The guides' settings for one LoRA type: family, layers, ranks and learning rates."""
    return Preset(name, when, {**_NETWORK, **values})


FAMILY_PRESETS: tuple[Preset, ...] = (
    _family_preset("LoRA", "For most purposes, and to undo another LoRA type: small, robust, read by every webui."),
    _family_preset(
        "LoCon",
        "For styles and textures: a LoRA that includes the convolutions, read by every webui.",
        targets="all",
        alpha=8.0,
        conv_rank=8,
        conv_alpha=4.0,
    ),
    _family_preset(
        "DoRA",
        "For a small rank that should work like a larger one; about 50% slower.",
        dora=True,
        rank=8,
        alpha=4.0,
        learning_rate=5e-5,
        text_encoder_lr=2.5e-5,
    ),
    _family_preset(
        "LoHa",
        "For several concepts or much detail in a small file.",
        family="loha",
        rank=8,
        alpha=4.0,
    ),
    _family_preset(
        "LoKr",
        "For nearly full fine-tuning in a file no larger than that of a LoRA.",
        family="lokr",
        lokr_factor=8,
        full_matrix=True,
    ),
    _family_preset(
        "DyLoRA",
        "For finding out which rank is enough: the file can be cut down to every fourth rank.",
        family="dylora",
        rank=32,
        alpha=16.0,
        dylora_unit=4,
        batch_size=1,
        gradient_accumulation=4,
    ),
    _family_preset(
        "GLoRA",
        "For styles close to what the model knows, as it reuses the model's weights.",
        family="glora",
        rank=8,
        learning_rate=5e-5,
        text_encoder_lr=2.5e-5,
    ),
    _family_preset(
        "IA3",
        "For a style the model almost knows, in less than a megabyte; A1111 reads it, Forge does not.",
        family="ia3",
        targets="all",
        learning_rate=5e-3,
        text_encoder_lr=2e-3,
    ),
    _family_preset(
        "Diag-OFT",
        "For a new look that preserves what the model knows; A1111 reads it, Forge does not.",
        family="oft",
        rank=8,
    ),
    _family_preset(
        "BOFT",
        "For a finer version of Diag-OFT that mixes all channels; A1111 reads it, Forge does not.",
        family="boft",
        rank=4,
    ),
    _family_preset(
        "Native",
        "For when nothing else is enough: trains all weights of the layers, in a file of several gigabytes.",
        family="full",
        learning_rate=5e-6,
        text_encoder_lr=1e-6,
    ),
)

PRESETS: tuple[Preset, ...] = (
    Preset(
        "Character",
        "For a drawn or rendered character, with ten to thirty images and tag captions.",
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
        "For the look that many different images share: also trains the convolutions, which hold brush strokes.",
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
        "For an object, a garment or a pose: a small rank, so that only the concept is learnt and not its "
        "surroundings.",
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
    likeness_preset(OPTIMIZERS),
    Preset(
        "Multi-concept",
        "For several characters or outfits in one file: equal shares, a trigger for each, and a rank that fits them "
        "all.",
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
        "For SDXL checkpoints: their resolution, only the UNet, and memory for a card with 12 GB.",
        {
            "resolution": 1024,
            "resolution_height": None,
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
        "For a graphics card with little memory: the same training in smaller batches, which takes longer.",
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
        "For training without choosing learning rates: Prodigy finds them itself, but needs more memory.",
        _PRODIGY,
    ),
    Preset(
        "Prodigy fast",
        "For a short run with Prodigy: steps two and a half times as large (d_coef=2), which learn in fewer epochs but "
        "overtrain sooner.",
        {**_PRODIGY, "optimizer_args": _FAST_PRODIGY_ARGS},
    ),
    Preset(
        "Textual inversion",
        "For a word for what the model can draw already: an embedding of a few kilobytes, which leaves the model as "
        "it is.",
        {
            "method": "textual_inversion",
            "embedding_vectors": 4,
            "preserve_embedding_norm": False,
            "optimizer": "AdamW",
            "optimizer_args": "weight_decay=0",
            "learning_rate": 5e-3,
            "text_encoder_lr": None,
            "lr_schedule": "constant",
            "warmup": 0.0,
            "caption_dropout": 0.0,
        },
    ),
    *(Preset(preset.name, preset.when, preset.values) for preset in CARD_PRESETS),
    *FAMILY_PRESETS,
)


def find_preset(name: str) -> Preset:
    """The preset with this name; case, spaces and hyphens are ignored. LoraTrainError if there is none."""
    by_name = {_normalised(preset.name): preset for preset in PRESETS}
    if _normalised(name) in by_name:
        return by_name[_normalised(name)]
    names = [preset.name for preset in PRESETS]
    hint = did_you_mean(name, names) or f" Available: {', '.join(names)}."
    raise LoraTrainError(f"There is no preset {name!r}.{hint}")


def _normalised(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
