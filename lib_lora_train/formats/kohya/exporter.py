"""Our settings as a .json file for the kohya_ss GUI, with a list of what it cannot express."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.config.optimizer_catalog import CUSTOM
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core import atomic_write
from lib_lora_train.formats.kohya import keys as kohya_keys
from lib_lora_train.formats.kohya.import_state import IgnoredKey, kohya_parameters
from lib_lora_train.formats.kohya.importer import clear_redundant_values, from_gui
from lib_lora_train.formats.kohya.network_export import gui_network

_GUI_NAMES = {"resolution": "max_resolution", "optimizer_type": "optimizer", "constraint": "constrain"}
_MIXED_PRECISIONS = {"fp32": "no", "auto": "fp16"}
_REASONS = {
    "epochs": "is left out: the GUI uses either steps or epochs, and the steps are written",
    "seed": "means a random seed in the GUI",
    "precision": "is not available in the GUI; fp16 is written",
    "optimizer_args": "is written out in full",
    "caption_lines": "is left out: kohya's tools read the first line, or with wildcards a random one",
    "missing_captions": "is left out: kohya's tools use the folder's name after its number",
    "affixes_as_tags": "is left out: in kohya's tools prefix and suffix are part of the caption",
    "stop_text_encoder": "is ignored by kohya's tools for a LoRA",
    "trigger": "is left out: put it into every caption, or into the folder's name",
    "class_word": "is left out: put it into the folder's name (10_cat)",
    "repeats": "is left out: put the images into a subfolder named N_words (10_cat)",
}


@dataclass(frozen=True)
class Exported:
    """The GUI's values, and our settings that they cannot hold, each with the reason."""

    values: dict[str, Any]
    lost: tuple[IgnoredKey, ...]


def to_gui(config: TrainConfig) -> Exported:
    """The settings for the GUI. Imported again they give the same config, except for what `lost` names."""
    plain = {
        _GUI_NAMES.get(name, name): _plain(getattr(config, parameter.name))
        for name, parameter in kohya_parameters().items()
    }
    values = {**kohya_keys.DEFAULTS, **plain, **_special(config), **_folders(config)}
    return Exported(values, _lost(config, from_gui(values).config))


def write_gui_settings(path: Path, config: TrainConfig) -> Exported:
    """Write the GUI's .json file, completely or not at all. OutputError if it cannot be written."""
    exported = to_gui(config)
    atomic_write.write_text(path, json.dumps(exported.values, indent=2, ensure_ascii=False))
    return exported


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return "\n".join(value)
    return "" if value is None else value


def _special(config: TrainConfig) -> dict[str, Any]:
    """The keys whose meaning differs in the GUI."""
    is_share = config.warmup < 1
    has_constant_warmup = config.lr_schedule == "constant" and config.warmup
    return {
        "max_resolution": "{},{}".format(*config.resolution_size),
        "epoch": 1 if config.max_steps else config.epochs,
        "max_train_epochs": 0,
        "unet_lr": config.effective_unet_lr if config.train_unet else 0,
        "text_encoder_lr": config.effective_text_encoder_lr if config.train_text_encoder else 0,
        "optimizer": config.custom_optimizer if config.optimizer == CUSTOM else config.optimizer,
        "optimizer_args": _optimizer_args(config),
        "lr_scheduler": "constant_with_warmup" if has_constant_warmup else config.lr_schedule,
        "lr_warmup": round(config.warmup * 100, 10) if is_share else 0,
        "lr_warmup_steps": 0 if is_share else config.warmup,
        "mixed_precision": _MIXED_PRECISIONS.get(config.precision, config.precision),
        "save_precision": "float" if config.save_precision == "fp32" else config.save_precision,
        **{name: getattr(config, ours) == value for name, (ours, value) in kohya_keys.MODEL_SWITCHES.items()},
        **{name: config.lora_precision == kind for name, kind in kohya_keys.FULL_PRECISIONS.items()},
        "noise_offset_type": _noise_kind(config),
        "sample_sampler": config.sample_sampler.lower().replace(" ", "_"),
        **gui_network(config),
    }


def _optimizer_args(config: TrainConfig) -> str:
    """The optimiser's arguments; Adafactor's with our defaults, which differ from the GUI's."""
    args = config.optimizer_args
    if config.optimizer == "Adafactor" and config.lr_schedule != "adafactor":
        missing = [name for name in ("scale_parameter", "relative_step") if name not in args]
        args = " ".join([*args.split(), *(f"{name}=False" for name in missing)])
    return args


def _noise_kind(config: TrainConfig) -> str:
    """The GUI uses one kind of noise: multires if that is set, else the offset."""
    multires = kohya_parameters().get("multires_noise_iterations")
    return "Multires" if multires is not None and getattr(config, multires.name) else "Original"


def _folders(config: TrainConfig) -> dict[str, Any]:
    """The GUI's folders: one of each kind."""
    own = next((concept for concept in config.concepts if not concept.is_regularisation), Concept())
    regularisation = next((concept for concept in config.concepts if concept.is_regularisation), Concept())
    switches = {
        name: all(getattr(own, field) for field in values) for name, values in kohya_keys.FOLDER_SWITCHES.items()
    }
    return {"train_data_dir": own.folder, "reg_data_dir": regularisation.folder, **switches}


def _lost(config: TrainConfig, read_back: TrainConfig) -> tuple[IgnoredKey, ...]:
    """Every setting that differs after importing the GUI's values again."""
    original = clear_redundant_values(config)
    lost = [
        IgnoredKey(p.name, getattr(original, p.name), _REASONS.get(p.name, "is not supported by the GUI"))
        for p in parameters_of(TrainConfig)
        if getattr(original, p.name) != getattr(read_back, p.name)
    ]
    return (*lost, *_lost_of_folders(config.concepts, read_back.concepts))


def _lost_of_folders(concepts: tuple[Concept, ...], read_back: tuple[Concept, ...]) -> list[IgnoredKey]:
    lost = []
    kept = {concept.folder: concept for concept in read_back}
    for number, concept in enumerate(concepts, start=1):
        where = f"concepts[{number}]"
        if concept.folder not in kept:
            lost.append(
                IgnoredKey(f"{where}.folder", concept.folder, "is left out: the GUI has one folder of each kind")
            )
            continue
        for parameter in parameters_of(Concept):
            value = getattr(concept, parameter.name)
            if value != getattr(kept[concept.folder], parameter.name):
                lost.append(IgnoredKey(f"{where}.{parameter.name}", value, _REASONS.get(parameter.name, "is left out")))
    return lost
