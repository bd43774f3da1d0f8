"""Settings as a TOML file, to store, share and repeat a run.

Parameters are at the top level, folders in `[[concepts]]`. Paths in the file are relative to the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import TrainConfig, config_values
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import ConfigError, Problem
from lib_lora_train.core.user_paths import user_path

PATH_SETTINGS = ("checkpoint", "vae", "output_dir", "continue_from")
"""The settings that are paths; besides, each concept has its `folder`."""


def read_toml_config(path: Path) -> Mapping[str, Any]:
    """The plain values in a file, for `read_config`, with relative paths made absolute.

    ConfigError if the file is missing, not text or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise file_error(path, "is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        raise file_error(path, f"cannot be read: {error.strerror or error}.") from error
    try:
        values: dict[str, Any] = tomlkit.parse(text).unwrap()
    except TOMLKitError as error:
        raise file_error(path, f"is not valid TOML: {error}.") from error
    return _with_paths(values, path.absolute().parent)


def write_toml_config(path: Path, config: TrainConfig) -> None:
    """Write all settings, grouped, so that the run can be repeated from anywhere.

    Paths are written absolute; settings without a value are left out. The file is written completely or not at all;
    OutputError if it cannot be written.
    """
    atomic_write.write_text(path, _toml_text(config))


def file_error(path: Path, message: str) -> ConfigError:
    """A problem with a settings file as a whole."""
    return ConfigError([Problem("error", str(path), message)])


def _with_paths(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """Paths made absolute; values of the wrong type are left for `read_config` to report."""
    found = {name: _absolute(value, base) if name in PATH_SETTINGS else value for name, value in values.items()}
    concepts = found.get("concepts")
    if isinstance(concepts, list):
        found["concepts"] = [
            {**table, "folder": _absolute(table["folder"], base)}
            if isinstance(table, dict) and "folder" in table
            else table
            for table in concepts
        ]
    return found


def _absolute(value: Any, base: Path) -> Any:
    if not isinstance(value, str) or not value.strip() or PureWindowsPath(value.strip()).is_absolute():
        return value  # a Windows path stays as it is on every system
    return os.path.normpath(base / user_path(value))


def _toml_text(config: TrainConfig) -> str:
    values = _with_paths(config_values(config), Path.cwd())
    document = tomlkit.document()
    group = ""
    for parameter in sorted(parameters_of(TrainConfig), key=_group_order):
        value = values[parameter.name]
        if value is None:
            continue
        if parameter.group != group:
            group = parameter.group
            document.add(tomlkit.nl())
            document.add(tomlkit.comment(group))
        document.add(parameter.name, tomlkit.item(value))
    tables = tomlkit.aot()
    for concept in values.get("concepts", ()):
        tables.append(tomlkit.item({name: value for name, value in concept.items() if value is not None}))
    if tables:
        document.add("concepts", tables)
    return tomlkit.dumps(document).lstrip()


def _group_order(parameter: Any) -> int:
    """Groups in the order of their first parameter."""
    return next(n for n, other in enumerate(parameters_of(TrainConfig)) if other.group == parameter.group)
