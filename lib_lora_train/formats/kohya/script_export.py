"""Our settings as arguments of sd-scripts, as its `--config_file` has them."""

from __future__ import annotations

from typing import Any

from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.optimizer_catalog import CUSTOM, OPTIMIZER_CATALOG
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya import keys as kohya_keys
from lib_lora_train.formats.kohya.dataset import OWN_CAPTIONS
from lib_lora_train.formats.kohya.dataset_export import CAPTION_ARGUMENTS, Subset, absolute_path
from lib_lora_train.formats.kohya.import_state import is_same, kohya_parameters
from lib_lora_train.formats.kohya.network_export import NETWORK_ARGUMENTS, script_network

MAX_SEED = 2**32 - 1
"""sd-scripts passes the seed on to NumPy, which takes no larger one."""

_PATHS = ("pretrained_model_name_or_path", "vae", "network_weights", "output_dir")
_IN_DATASET = {
    *(*CAPTION_ARGUMENTS, *OWN_CAPTIONS, "resolution", "train_batch_size", "enable_bucket"),
    *("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale"),
}
_OWN_CLASSES = {"CAME": OPTIMIZER_CATALOG["CAME"].origin.replace(":", ".")}
"""Optimisers that sd-scripts has no name for."""


def script_arguments(config: TrainConfig, subsets: tuple[Subset, ...]) -> dict[str, Any]:
    """The arguments without those at kohya's default.

    Those of images and captions are among them only if there are no `subsets`: otherwise they are in the dataset file.
    """
    left_out = {*NETWORK_ARGUMENTS, *(_IN_DATASET if subsets else ())}
    plain = {
        name: getattr(config, parameter.name) for name, parameter in kohya_parameters().items() if name not in left_out
    }
    dataset = {} if subsets else _images_and_captions(config)
    values = {**plain, **_special(config), **dataset}
    paths = {name: absolute_path(values[name]) for name in _PATHS}
    return {name: value for name, value in {**values, **paths}.items() if _is_needed(name, value)}


def _is_needed(name: str, value: Any) -> bool:
    if value is None or value is False or value in ("", (), []):
        return False
    return name not in kohya_keys.DEFAULTS or not is_same(value, kohya_keys.DEFAULTS[name])


def _images_and_captions(config: TrainConfig) -> dict[str, Any]:
    """What is otherwise in the dataset file."""
    width, height = config.resolution_size
    return {
        "resolution": f"{width},{height}",
        "min_bucket_reso": min(config.min_bucket, width, height),
        "max_bucket_reso": max(config.max_bucket, width, height),
    }


def _special(config: TrainConfig) -> dict[str, Any]:
    """The arguments that are no value of one setting."""
    module, arguments = script_network(config)
    return {
        **_length(config),
        **_rates(config),
        **optimizer_arguments(config),
        **_precisions(config),
        **_prediction(config),
        **_samples(config),
        "clip_skip": config.clip_skip if config.clip_skip > 1 else None,
        "max_token_length": config.max_token_length if config.max_token_length > 75 else None,
        "seed": config.seed % (MAX_SEED + 1),
        "validation_split": config.validation_share,
        "cache_latents": can_cache(config),
        "cache_latents_to_disk": config.cache_to_disk and can_cache(config),
        "save_last_n_steps": last_steps(config),
        "network_module": module,
        "network_alpha": config.rank if config.family == "glora" else config.effective_alpha,
        "network_args": [f"{name}={value}" for name, value in arguments.items()],
    }


def can_cache(config: TrainConfig) -> bool:
    """Whether sd-scripts may encode the images ahead: it refuses that with changing crops and colours."""
    return not any(concept.random_crop or concept.colour_jitter for concept in config.concepts)


def last_steps(config: TrainConfig) -> int:
    """`keep_last_step_files` as a number of steps, 0 for all."""
    files, steps = config.keep_last_step_files, config.save_every_n_steps
    return (files - 1) * steps + (steps > 1) if files and steps else 0


def _length(config: TrainConfig) -> dict[str, Any]:
    if config.max_steps:
        return {"max_train_epochs": None, "max_train_steps": config.max_steps}
    return {"max_train_epochs": config.epochs, "max_train_steps": None}


def _rates(config: TrainConfig) -> dict[str, Any]:
    first, second = config.effective_text_encoder_lr, config.text_encoder_2_lr
    return {
        "unet_lr": config.effective_unet_lr if config.train_unet else None,
        "text_encoder_lr": [first, *([] if second is None else [second])] if config.train_text_encoder else None,
        "network_train_unet_only": config.train_unet and not config.train_text_encoder,
        "network_train_text_encoder_only": config.train_text_encoder and not config.train_unet,
    }


def optimizer_arguments(config: TrainConfig) -> dict[str, Any]:
    """Optimiser and schedule of the learning rate."""
    given = config.custom_optimizer if config.optimizer == CUSTOM else config.optimizer
    schedule = config.lr_schedule
    is_falling = schedule == "warmup_stable_decay"
    return {
        "optimizer_type": _OWN_CLASSES.get(given, given),
        "optimizer_args": [f"{name}={argument_text(value)}" for name, value in all_optimizer_args(config).items()],
        "lr_scheduler": "constant_with_warmup" if schedule == "constant" and config.warmup else schedule,
        "lr_scheduler_num_cycles": config.lr_cycles if schedule == "cosine_with_restarts" else None,
        "lr_warmup_steps": _duration(config.warmup) or None,
        "lr_scheduler_min_lr_ratio": config.lr_min_ratio or None,
        "lr_decay_steps": _duration(config.lr_decay) if is_falling else None,
    }


def all_optimizer_args(config: TrainConfig) -> dict[str, Any]:
    """The optimiser's arguments; Adafactor's with our defaults, which differ from those of kohya's tools."""
    own = parse_optimizer_args(config.optimizer_args)
    is_fixed = config.optimizer == "Adafactor" and config.lr_schedule != "adafactor"
    return {**own, **{name: False for name in ("scale_parameter", "relative_step") if is_fixed and name not in own}}


def argument_text(value: Any) -> str:
    """An argument as kohya's tools read it, without spaces: (0.9, 0.99) → "0.9,0.99"."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _duration(value: float) -> float | int:
    """A share as a decimal number, a number of steps as a whole one: sd-scripts tells them apart by that."""
    return value if value < 1 else int(value)


def _precisions(config: TrainConfig) -> dict[str, Any]:
    mixed = kohya_keys.MIXED_PRECISIONS.get(config.precision, config.precision)
    return {
        "mixed_precision": mixed,
        "save_precision": "float" if config.save_precision == "fp32" else config.save_precision,
        **full_precisions(config),
    }


def full_precisions(config: TrainConfig) -> dict[str, bool]:
    """The switches for LoRA weights in 16 bits, which need the same mixed precision."""
    mixed = kohya_keys.MIXED_PRECISIONS.get(config.precision, config.precision)
    return {name: config.lora_precision == kind == mixed for name, kind in kohya_keys.FULL_PRECISIONS.items()}


def _prediction(config: TrainConfig) -> dict[str, Any]:
    """What the model predicts, and the two weights that sd-scripts refuses with another prediction."""
    switches = {name: getattr(config, ours) == value for name, (ours, value) in kohya_keys.MODEL_SWITCHES.items()}
    is_v = switches["v_parameterization"]
    return {
        **switches,
        "scale_v_pred_loss_like_noise_pred": config.scale_v_pred_loss_like_noise_pred and is_v,
        "v_pred_like_loss": None if is_v else config.v_pred_like_loss,
        "noise_offset": config.noise_offset or (0.0 if config.adaptive_noise_scale else None),
    }


def _samples(config: TrainConfig) -> dict[str, Any]:
    """The prompts are in a separate file."""
    return {"sample_prompts": None, "sample_sampler": sampler_name(config)}


def sampler_name(config: TrainConfig) -> str:
    """kohya's name of the sampler."""
    return config.sample_sampler.lower().replace(" ", "_")
