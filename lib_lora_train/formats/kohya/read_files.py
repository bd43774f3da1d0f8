"""Settings in the files of kohya's tools: the GUI's .json, sd-scripts' .toml and dataset files, LoRA files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import CONFIG_KEY, TrainConfig, read_config
from lib_lora_train.core.errors import AdapterError, ConfigError, DataError, Problem, SettingsFileError
from lib_lora_train.core.safetensors_header import read_header
from lib_lora_train.core.user_paths import explain_wrong_path, user_path
from lib_lora_train.dataset.caption_lists import common_folder, read_caption_list
from lib_lora_train.formats.kohya import keys as kohya_keys
from lib_lora_train.formats.kohya.dataset import read_folders
from lib_lora_train.formats.kohya.import_state import kohya_parameters, strip_value
from lib_lora_train.formats.kohya.importer import (
    NO_FOLDERS,
    Imported,
    flat_values,
    from_gui,
    from_metadata,
    from_script,
    known_keys,
)
from lib_lora_train.formats.kohya.other_models import find_other_model
from lib_lora_train.formats.kohya.other_tabs import why_not_a_lora
from lib_lora_train.formats.onetrainer.importer import from_onetrainer, is_onetrainer
from lib_lora_train.formats.text_file import read_text_file
from lib_lora_train.formats.toml import PATH_SETTINGS, read_toml_config


def read_settings(path: Path, dataset: Path | None = None) -> Imported:
    """The settings in a .json, .toml or .safetensors file, with those of a dataset file of sd-scripts.

    Relative paths are resolved against the file's folder. ConfigError or AdapterError for a file without settings.
    """
    ending = path.suffix.lower()
    readers = {".json": _read_text_settings, ".toml": _read_text_settings, ".safetensors": _read_lora_settings}
    if ending not in readers:
        what = explain_wrong_path(path) or "is another kind of file."
        readable = "a .json of the kohya_ss GUI or OneTrainer, a .toml of sd-scripts or a LoRA"
        raise SettingsFileError(path, f"{what} Settings can be imported from {readable}.")
    imported = readers[ending](path, dataset)
    config, moved = _with_absolute_paths(imported.config, path.absolute().parent)
    if moved:
        text = f"Relative paths are resolved against the folder of {path.name}: {', '.join(moved)}."
        imported = dataclasses.replace(imported, problems=(*imported.problems, Problem("hint", "", text)))
    return dataclasses.replace(imported, config=config)


def _read_lora_settings(path: Path, dataset: Path | None) -> Imported:
    if dataset is not None:
        raise SettingsFileError(path, "is a LoRA file, which cannot be combined with a dataset file. Leave that out.")
    header = read_header(path)
    if not any(key == CONFIG_KEY or key.startswith("ss_") for key in header.metadata):
        text = "has no training settings: it was saved without metadata. `check` shows what it contains."
        raise AdapterError(f"{path.name} {text}")
    if CONFIG_KEY not in header.metadata:
        _refuse_other_models(path, header.metadata)
    return from_metadata(header)


def _refuse_other_models(path: Path, values: Mapping[str, Any]) -> None:
    model = find_other_model(values)
    if model and model != TITLES["anima"]:
        text = f"has settings for {model}. Only those for SD1, SD2, SDXL and Anima can be imported."
        raise SettingsFileError(path, text)


def _read_text_settings(path: Path, dataset: Path | None) -> Imported:
    values = _read_values(path)
    if is_onetrainer(values):
        if dataset is not None:
            raise SettingsFileError(path, "is for OneTrainer, which has no dataset file. Leave that out.")
        return from_onetrainer(values, path.absolute().parent)
    if not isinstance(values, Mapping):
        raise SettingsFileError(path, "is not a table of settings.")
    if "datasets" in values:
        if dataset is not None:
            raise SettingsFileError(path, "is itself a dataset file. Give the other settings first, or leave one out.")
        return from_script({}, read_folders(values))
    if _is_ours(values):
        config, problems = read_config(values)
        return Imported(config, (), problems, tuple(values))
    if not _has_known_key(values):
        raise SettingsFileError(path, "has no settings of kohya's tools: it has none of their keys.")
    _refuse_other_models(path, flat_values(values))
    reason = why_not_a_lora(values) if path.suffix.lower() == ".json" else ""
    if reason:
        raise SettingsFileError(path, reason)
    named = strip_value(flat_values(values).get("dataset_config"))
    if dataset is None and named is not None and (path.parent / str(named)).is_file():
        dataset = path.parent / str(named)
    folders = read_folders(_read_table(dataset)) if dataset else NO_FOLDERS
    if path.suffix.lower() == ".json":
        return from_gui(values, folders)
    return from_script(_with_read_prompts(flat_values(values), path.parent), folders)


def _with_read_prompts(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """The values with the lines of sd-scripts' sample prompt file, if it can be read, instead of its name."""
    named = values.get("sample_prompts")
    if not isinstance(named, str) or not named.strip().lower().endswith(".txt"):
        return values
    try:
        text = read_text_file(base / user_path(named), ".txt")
    except (ConfigError, ValueError):
        return values
    return {**values, "sample_prompts": text}


def _read_table(path: Path) -> Mapping[str, Any]:
    values = _read_values(path)
    if not isinstance(values, Mapping):
        raise SettingsFileError(path, "is not a table of settings.")
    return values


def _read_values(path: Path) -> Any:
    """The table in a .toml or .json file; a .json may have anything else."""
    if path.suffix.lower() != ".json":
        return read_toml_config(path)
    try:
        return json.loads(read_text_file(path, ".json"))
    except (ValueError, RecursionError):
        raise SettingsFileError(path, "is not valid JSON. Save the settings again in kohya's GUI.") from None


def _is_ours(values: Mapping[str, Any]) -> bool:
    """Whether the keys are our own; names that both use do not count."""
    own = {parameter.name for parameter in parameters_of(TrainConfig)} | {"concepts"}
    theirs = {*kohya_parameters(), *kohya_keys.ALIASES, *kohya_keys.DEFAULTS, *kohya_keys.NOT_NEEDED}
    keys = {str(key) for key in values}
    return len(keys & (own - theirs)) > len(keys & (theirs - own))


def _has_known_key(values: Mapping[str, Any]) -> bool:
    return not known_keys().isdisjoint(map(str, flat_values(values)))


def _with_absolute_paths(config: TrainConfig, base: Path) -> tuple[TrainConfig, list[str]]:
    """The config with relative paths made absolute, and the original paths."""
    moved: list[str] = []

    def resolve(path: str) -> str:
        expanded = user_path(path)
        if not path or expanded.is_absolute() or PureWindowsPath(path).is_absolute():
            return str(expanded) if path else path
        moved.append(path)
        return os.path.normpath(base / expanded)

    concepts = tuple(
        dataclasses.replace(
            concept,
            folder=resolve(concept.folder) or _folder_of_list(resolve(concept.caption_file)),
            caption_file=resolve(concept.caption_file),
        )
        for concept in config.concepts
    )
    paths = {name: resolve(getattr(config, name)) for name in PATH_SETTINGS}
    return config.replace(concepts=concepts, **paths), moved


def _folder_of_list(path: str) -> str:
    """The folder of the images that a list of captions names by their absolute paths; "" if there is none."""
    try:
        return common_folder(read_caption_list(Path(path))) if path else ""
    except DataError:
        return ""
