"""Settings from the command line: flags over presets over a file, judged together."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.presets import find_preset
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.core.errors import LoraTrainError, Problem
from lib_lora_train.core.user_paths import user_path

PATHS = ("checkpoint", "vae", "output_dir")


def read_cli_config(options: argparse.Namespace, unknown: Sequence[str], file: str = "") -> TrainConfig:
    """The config from a file (of the first one named, if none is given) and the flags.

    ConfigError with everything that is wrong in either.
    """
    from lib_lora_train.config.validation.validate import require_usable, validate
    from lib_lora_train.formats.toml import read_toml_config

    if not any(word.startswith("--") for word in unknown):
        refuse(unknown)
    file = file or next(iter(options.configs), "")
    values = dict(read_toml_config(Path(file))) if file else {}
    for name in options.preset:
        values.update(find_preset(name).values)
    problems = override(values, vars(options), unknown)
    config, found = read_config(values)
    problems += found
    told = {problem.where for problem in problems}  # a value that could not be read stands at its default
    require_usable([*problems, *(p for p in validate(config) if p.where not in told)])
    return config


def override(values: dict[str, Any], flags: dict[str, Any], unknown: Sequence[str]) -> list[Problem]:
    """Write the flags over the file's values, unknown ones too, so that all are judged at once."""
    known = {parameter.name for parameter in parameters_of(TrainConfig)}
    given = {name: value for name, value in flags.items() if name in known}
    concept = {name.removeprefix("concept."): v for name, v in flags.items() if name.startswith("concept.")}
    values.update({name: _from_here(text) if name in PATHS else text for name, text in given.items()})
    values.update(dict.fromkeys(unknown_names(unknown), ""))
    if not concept:
        return []
    tables = values.setdefault("concepts", [{}])
    if not isinstance(tables, list) or len(tables) != 1 or not isinstance(tables[0], dict):
        reason = "flags can only change a single concept. Give several in the TOML file, as [[concepts]]."
        return [Problem("error", ", ".join(concept), reason)]
    tables[0].update({name: _from_here(text) if name == "folder" else text for name, text in concept.items()})
    return []


def _from_here(text: str) -> str:
    """A path on the command line is meant from the folder one is in, one in a TOML file from the file's."""
    return os.path.normpath(Path.cwd() / user_path(text)) if text.strip() else text


def unknown_names(words: Sequence[str]) -> list[str]:
    """The parameter names that unknown flags stand for: `--network-dim 8` → `network_dim`."""
    return [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]


def refuse(unknown: Sequence[str]) -> None:
    """LoraTrainError for words that no command knows."""
    if unknown:
        raise LoraTrainError(f"{unknown[0]} is not known here. --help lists what is.")
