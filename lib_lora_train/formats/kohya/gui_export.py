"""Our settings as the values of the kohya_ss GUI's form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.data_folders import scan_concept_folders
from lib_lora_train.formats.kohya import keys as kohya_keys
from lib_lora_train.formats.kohya.dataset_export import CAPTION_ARGUMENTS, absolute_path
from lib_lora_train.formats.kohya.import_state import kohya_parameters
from lib_lora_train.formats.kohya.importer import from_gui
from lib_lora_train.formats.kohya.network_export import gui_network, script_network
from lib_lora_train.formats.kohya.script_export import (
    MAX_SEED,
    all_optimizer_args,
    argument_text,
    can_cache,
    full_precisions,
    last_steps,
    optimizer_arguments,
    sampler_name,
)

_GUI_NAMES = {"resolution": "max_resolution", "optimizer_type": "optimizer", "constraint": "constrain"}
_PATHS = ("pretrained_model_name_or_path", "vae", "network_weights", "output_dir")
_IN_DATASET_ONLY = (*CAPTION_ARGUMENTS, "caption_prefix", "caption_suffix", "caption_tag_dropout_rate")


def fits_gui_folders(config: TrainConfig) -> bool:
    """Whether the GUI's own fields for folders and captions are enough, without a dataset file.

    They hold one folder of each kind, whose images are in N_words subfolders.
    """
    if not config.concepts:
        return True
    declared, default = kohya_parameters(), TrainConfig()
    missing = [declared[name].name for name in _IN_DATASET_ONLY if name in kohya_keys.NOT_IN_GUI]
    has_missing = any(getattr(config, name) not in (getattr(default, name), "") for name in missing)
    concepts = tuple(replace(one, folder=absolute_path(one.folder)) for one in config.concepts)
    is_kept = from_gui(gui_values(config)).config.concepts == concepts
    return is_kept and not has_missing and not any(map(_is_plain, config.concepts))


def _is_plain(concept: Concept) -> bool:
    """Whether the images are in the folder itself."""
    root = user_path(concept.folder)
    return any(folder.path == root for folder in scan_concept_folders(concept).folders)


def gui_values(config: TrainConfig, *, has_dataset: bool = False) -> dict[str, Any]:
    """The values of the form; with a dataset file those of the folders are empty."""
    plain = {
        _GUI_NAMES.get(name, name): _plain(getattr(config, parameter.name))
        for name, parameter in kohya_parameters().items()
    }
    folders = _folders(config.replace(concepts=()) if has_dataset else config)
    values = {**kohya_keys.DEFAULTS, **plain, **_special(config), **folders}
    if has_dataset and not config.max_steps:
        values["max_train_epochs"] = config.epochs  # the GUI computes no steps from a dataset file
    known = {name: value for name, value in values.items() if name not in kohya_keys.NOT_IN_GUI}
    paths = {name: absolute_path(known[name]) for name in _PATHS}
    return {**known, **paths, "additional_parameters": " ".join(_additional(config, has_dataset))}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return "\n".join(value)
    return "" if value is None else value


def _special(config: TrainConfig) -> dict[str, Any]:
    """The keys whose meaning differs in the GUI."""
    is_share = config.warmup < 1
    optimizer = optimizer_arguments(config)
    arguments = all_optimizer_args(config)
    return {
        "max_resolution": "{},{}".format(*config.resolution_size),
        "epoch": 1 if config.max_steps else config.epochs,
        "max_train_epochs": 0,
        "unet_lr": config.effective_unet_lr if config.train_unet else 0,
        "text_encoder_lr": config.effective_text_encoder_lr if config.train_text_encoder else 0,
        "optimizer": optimizer["optimizer_type"],
        "optimizer_args": " ".join(f"{name}={argument_text(value)}" for name, value in arguments.items()),
        "lr_scheduler": optimizer["lr_scheduler"],
        "lr_scheduler_num_cycles": optimizer["lr_scheduler_num_cycles"] or 1,
        "lr_warmup": round(config.warmup * 100, 10) if is_share else 0,
        "lr_warmup_steps": 0 if is_share else config.warmup,
        "mixed_precision": kohya_keys.MIXED_PRECISIONS.get(config.precision, config.precision),
        "save_precision": "float" if config.save_precision == "fp32" else config.save_precision,
        "v_parameterization": config.prediction_type == "v_prediction",
        **full_precisions(config),
        "seed": config.seed % (MAX_SEED + 1),
        "cache_latents": can_cache(config),
        "cache_latents_to_disk": config.cache_to_disk and can_cache(config),
        "save_last_n_steps": last_steps(config),
        "noise_offset_type": _noise_kind(config),
        "sample_sampler": sampler_name(config),
        **gui_network(config),
    }


def _noise_kind(config: TrainConfig) -> str:
    """The GUI uses one kind of noise: multires if that is set, else the offset."""
    return "Multires" if config.multires_noise_iterations else "Original"


def _folders(config: TrainConfig) -> dict[str, Any]:
    """The GUI's folders: one of each kind."""
    own = next((concept for concept in config.concepts if not concept.is_regularisation), Concept())
    regularisation = next((concept for concept in config.concepts if concept.is_regularisation), Concept())
    switches = {
        name: all(getattr(own, field) for field in values) for name, values in kohya_keys.FOLDER_SWITCHES.items()
    }
    return {
        "train_data_dir": absolute_path(own.folder),
        "reg_data_dir": absolute_path(regularisation.folder),
        **switches,
    }


def _additional(config: TrainConfig, has_dataset: bool) -> list[str]:
    """Arguments of sd-scripts that the GUI has no field for. It splits them at blanks and drops quotes."""
    words = []
    if config.lr_schedule == "warmup_stable_decay" and config.lr_decay:
        words.append(f"--lr_decay_steps={optimizer_arguments(config)['lr_decay_steps']}")
    if config.lr_min_ratio and config.lr_schedule in ("cosine_with_min_lr", "warmup_stable_decay"):
        words.append(f"--lr_scheduler_min_lr_ratio={config.lr_min_ratio}")
    if config.lr_timescale and config.lr_schedule == "inverse_sqrt":
        words.append(f"--lr_scheduler_timescale={config.lr_timescale}")
    if not config.max_grad_norm:
        words.append("--max_grad_norm=0")  # the GUI drops a 0 in its field, and trains with 1
    if has_dataset and not config.max_steps and config.warmup >= 1:
        words.append(f"--lr_warmup_steps={int(config.warmup)}")  # which the GUI drops with a dataset file and epochs
    if config.zero_terminal_snr == "on":
        words.append("--zero_terminal_snr")
    if config.validation_share:
        words.append(f"--validation_split={config.validation_share}")
    if not has_dataset and any(concept.use_masks for concept in config.concepts):
        words.append("--alpha_mask")
    if config.train_text_encoder and config.text_encoder_2_lr is not None:
        words += ["--text_encoder_lr", str(config.effective_text_encoder_lr), str(config.text_encoder_2_lr)]
    module, arguments = script_network(config)
    if module.startswith("lycoris") and (config.dora or config.rank_stabilized):
        words += ["--network_args", *(f"{name}={value}" for name, value in arguments.items())]
    return words
