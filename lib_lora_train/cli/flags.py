"""The flags of `train`: one for each setting, generated from its declaration, and those of a single concept."""

from __future__ import annotations

import argparse
from typing import Any

from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.presets import PRESETS
from lib_lora_train.config.train_config import Concept, TrainConfig

GROUPS = {
    "model": "model",
    "data": "images",
    "captions": "captions",
    "training": "training",
    "noise": "noise and loss",
    "network": "network",
    "output": "output",
    "samples": "samples",
}


def add_setting_flags(command: argparse.ArgumentParser) -> None:
    """Add all of them, in groups. Unknown flags are then taken for settings, so that all errors come together."""
    command.set_defaults(takes_settings=True)
    groups = {key: command.add_argument_group(title) for key, title in GROUPS.items()}
    for parameter in parameters_of(TrainConfig):
        _add_flag(groups[parameter.group], parameter)
    concept = command.add_argument_group("a single concept, instead of a [[concepts]] table")
    for parameter in parameters_of(Concept):
        _add_flag(concept, parameter, prefix="concept.")


def _add_flag(group: argparse._ArgumentGroup, parameter: Parameter, *, prefix: str = "") -> None:
    """Add a flag whose raw text is validated later with everything else; absent flags set nothing."""
    flags = [f"--{parameter.name.replace('_', '-')}"]
    if parameter.name == "checkpoint":
        flags.append("--ckpt")
    common: dict[str, Any] = {
        "dest": prefix + parameter.name,
        "default": argparse.SUPPRESS,
        "help": f"{parameter.help} Default: {default_text(parameter)}.".replace("%", "%%"),
    }
    if parameter.kind is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, **common)
    elif parameter.kind is tuple:
        group.add_argument(*flags, action="append", metavar="TEXT", **common)
    else:
        metavar = "{" + ",".join(parameter.choices) + "}" if parameter.choices else parameter.kind.__name__.upper()
        group.add_argument(*flags, metavar=metavar, **common)


def default_text(parameter: Parameter) -> str:
    """The default as text."""
    if parameter.default is None or parameter.default in ("", ()):
        return "empty"
    if isinstance(parameter.default, bool):
        return "on" if parameter.default else "off"
    unit = f" {parameter.unit}" if parameter.unit else ""
    return f"{parameter.default:g}{unit}" if isinstance(parameter.default, float) else f"{parameter.default}{unit}"


def preset_help() -> str:
    """The help of `--preset`: every preset and what it is for."""
    presets = " ".join(f"{preset.name.lower().replace(' ', '-')}: {preset.when}" for preset in PRESETS)
    return f"settings for a purpose, which override the file; may be given several times. {presets}".replace("%", "%%")
