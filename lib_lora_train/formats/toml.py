"""Settings as a TOML file, to store, share and repeat a run.

Parameters are at the top level, folders in `[[concepts]]`. Paths in the file are relative to the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import TrainConfig, config_values
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import SettingsFileError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.formats.text_file import read_text_file

_IN_QUOTES = "in double quotes a backslash starts an escape sequence"
_ADVICE = "Write Windows paths in single quotes, or with forward slashes."
_WINDOWS_PATH = re.compile(r'"([^"]*\\[^"]*)"')
PATH_SETTINGS = ("checkpoint", "vae", "output_dir", "continue_from")
"""The settings that are paths; besides, each concept has its `folder`."""


def read_toml_config(path: Path, *, is_ours: bool = False) -> Mapping[str, Any]:
    """The plain values in a file, for `read_config`, with relative paths made absolute.

    `is_ours`: the file was written by a run, so bytes that are not UTF-8 belong to names of files and folders.
    SettingsFileError if the file is missing, not text or not TOML.
    """
    text = _read_own_text(path) if is_ours else read_text_file(path, ".toml")
    try:
        values: dict[str, Any] = tomlkit.parse(text).unwrap()
    except TOMLKitError as error:
        reason = _backslash_advice(text, error) or _json_advice(text) or f"is not valid TOML: {error}."
        raise SettingsFileError(path, reason) from error
    except RecursionError:
        raise SettingsFileError(path, "is not valid TOML: it is nested too deeply.") from None
    for name, text in _path_values(values):
        if any(ord(letter) < 32 for letter in text):
            raise SettingsFileError(path, f"{name} contains a line break or tab: {_IN_QUOTES}. {_ADVICE}")
    return _with_paths(values, path.absolute().parent)


def _read_own_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise SettingsFileError(path, f"cannot be read: {error.strerror or error}.") from error


def _path_values(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The names and texts of the settings that are paths."""
    concepts = values.get("concepts")
    tables = [table for table in concepts if isinstance(table, dict)] if isinstance(concepts, list) else []
    named = [(name, values.get(name)) for name in PATH_SETTINGS]
    for name, value in [*named, *(("folder", table.get("folder")) for table in tables)]:
        if isinstance(value, str):
            yield name, value


def write_toml_config(path: Path, config: TrainConfig) -> None:
    """Write all settings, grouped, so that the run can be repeated from anywhere.

    Paths are written absolute; settings without a value are left out. The file is written completely or not at all;
    OutputError if it cannot be written.
    """
    atomic_write.write_text(path, _toml_text(config))


def _backslash_advice(text: str, error: TOMLKitError) -> str:
    """What to write instead if the line of the error has a Windows path in double quotes; "" for other errors."""
    number = getattr(error, "line", 0)
    lines = text.splitlines()
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    match = _WINDOWS_PATH.search(line)
    if match is None:
        return ""
    path = match[1]
    return f"line {number}: {_IN_QUOTES}. Write '{path}' in single quotes, or \"{path.replace(chr(92), '/')}\"."


def _json_advice(text: str) -> str:
    """Where a file belongs that is JSON in spite of its ending; "" for other files."""
    return "contains JSON. Name it .json and convert it with `import`." if text.lstrip().startswith("{") else ""


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
