"""Settings from the command line: flags override presets, presets override a file."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.presets import find_preset
from lib_lora_train.config.train_config import Concept, TrainConfig, read_config
from lib_lora_train.core.errors import LoraTrainError, Problem
from lib_lora_train.core.user_paths import is_folder, user_path
from lib_lora_train.core.wording import count, did_you_mean, nearest

PATH_SETTINGS = ("checkpoint", "vae", "output_dir")


def read_cli_config(options: argparse.Namespace, file: str = "") -> TrainConfig:
    """The config from a file (the first one in `options` if none is given), presets and flags.

    ConfigError with all problems of all of them.
    """
    from lib_lora_train.config.validation.validate import all_problems, require_usable
    from lib_lora_train.formats.toml import read_toml_config

    if not any(_is_flag(word) for word in options.unknown):
        refuse_unknown(options)
    file = file or next(iter(options.configs), "")
    if is_folder(Path(file)) and file:
        raise LoraTrainError(f"{file} is a folder. Give a settings file (.toml), or a folder of images with --folder.")
    values = dict(read_toml_config(Path(file))) if file else {}
    for name in options.preset:
        values.update(find_preset(name).values)
    misspelt = dict(_misspelt_flags(options))
    problems = [Problem("error", flag, f"is not an option.{hint}") for flag, hint in misspelt.items()]
    problems += override(values, vars(options), [word for word in options.unknown if _flag(word) not in misspelt])
    config, found = read_config(values)
    require_usable(all_problems(config, [*problems, *found]))
    return config


def override(values: dict[str, Any], flags: dict[str, Any], unknown: Sequence[str]) -> list[Problem]:
    """Override the file's values with the flags, including unknown ones, so that all are validated together."""
    known = {parameter.name for parameter in parameters_of(TrainConfig)}
    given = {name: value for name, value in flags.items() if name in known}
    concept = {name.removeprefix("concept."): v for name, v in flags.items() if name.startswith("concept.")}
    values.update({name: _absolute_path(text) if name in PATH_SETTINGS else text for name, text in given.items()})
    values.update(dict.fromkeys(unknown_names(unknown), ""))
    if not concept:
        return []
    tables = values.setdefault("concepts", [{}])
    if not isinstance(tables, list) or len(tables) != 1 or not isinstance(tables[0], dict):
        reason = "flags can only set a single concept. Define several as [[concepts]] in the TOML file."
        return [Problem("error", ", ".join(concept), reason)]
    tables[0].update({name: _absolute_path(text) if name == "folder" else text for name, text in concept.items()})
    return []


def _absolute_path(text: str) -> str:
    """The path relative to the current folder (paths in a TOML file are relative to the file)."""
    return os.path.normpath(Path.cwd() / user_path(text)) if text.strip() else text


def with_places(config: TrainConfig, folders: Sequence[str], checkpoint: str | None) -> TrainConfig:
    """The settings of a moved run with its images in `folders`, one for each concept, and its checkpoint elsewhere.

    LoraTrainError if the number of folders is another one.
    """
    if checkpoint:
        config = config.replace(checkpoint=_absolute_path(checkpoint))
    if not folders:
        return config
    if len(folders) != len(config.concepts):
        needed = len(config.concepts)
        raise LoraTrainError(
            f"The run has {count(needed, 'concept')}, but --folder is given {count(len(folders), 'time')}. Give it "
            f"{needed}×."
        )
    pairs = zip(config.concepts, folders, strict=True)
    return config.replace(concepts=tuple(dataclasses.replace(c, folder=_absolute_path(text)) for c, text in pairs))


def unknown_names(words: Sequence[str]) -> list[str]:
    """The setting names in unknown flags: `--network-dim 8` → `network_dim`."""
    return [_flag(word)[2:].replace("-", "_") for word in words if _is_flag(word)]


def _is_flag(word: str) -> bool:
    return word.startswith("--")


def _flag(word: str) -> str:
    """`--rank=8` → `--rank`."""
    return word.partition("=")[0]


def _misspelt_flags(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Unknown flags whose nearest one is not a setting, such as --dry-run, each with a sentence that names it.

    All others are taken for settings.
    """
    settings = {parameter.name for parameter in (*parameters_of(TrainConfig), *parameters_of(Concept))}
    flags = options.parser._option_string_actions
    for flag in (_flag(word) for word in options.unknown if _is_flag(word)):
        near = nearest(flag, flags)
        if near and flags[near].dest.removeprefix("concept.") not in settings:
            yield flag, did_you_mean(flag, flags)


def refuse_unknown(options: argparse.Namespace) -> None:
    """LoraTrainError for arguments that the command does not have."""
    for word in options.unknown[:1]:
        hint = did_you_mean(_flag(word), options.parser._option_string_actions) if _is_flag(word) else ""
        raise LoraTrainError(f"Unknown argument {word}.{hint} See --help.")


def require_new_file(path: Path) -> Path:
    """The path; LoraTrainError if a file is there, so that nothing is overwritten."""
    if path.exists():
        raise LoraTrainError(f"{path} already exists. Choose another file with --out.")
    return path
