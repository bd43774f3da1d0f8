"""Settings of kohya's tools as ours: the GUI's .json, sd-scripts' .toml files, the metadata of any LoRA.

Names are matched by the `kohya=` names that the parameters declare; `kohya_rules` holds what means something else
there. Nothing is lost silently: every key is either taken over or in `Imported.ignored` with the reason.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig, read_config
from lib_lora_train.core.errors import AdapterError, ConfigError, Problem
from lib_lora_train.core.safetensors_header import Header, read_header
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.formats.kohya import keys as kohya_keys
from lib_lora_train.formats.kohya.dataset import Folders, read_folders
from lib_lora_train.formats.kohya.intake import (
    AT_DEFAULT,
    FACT,
    NOT_NEEDED,
    NOT_YET,
    UNKNOWN,
    Ignored,
    Intake,
    cleaned,
    is_same,
    kohya_parameters,
    literal_of,
)
from lib_lora_train.formats.kohya.network import conv_alpha_of
from lib_lora_train.formats.kohya.rules import apply_rules, take_additional
from lib_lora_train.formats.metadata import CONFIG_KEY
from lib_lora_train.formats.toml import read_toml_config

_NO_FOLDERS = Folders((), {}, ())
_PATHS = ("checkpoint", "vae", "output_dir", "continue_from")
_FOLDER_KEYS = ("train_data_dir", "reg_data_dir", "dataset_config")


@dataclass(frozen=True)
class Imported:
    """Foreign settings as ours, and an account of the rest.

    `problems` tells what is trained in another way here than there; `validate` has not seen the config yet. `taken`
    holds the file's keys that have a part in the config.
    """

    config: TrainConfig
    ignored: tuple[Ignored, ...] = ()
    problems: tuple[Problem, ...] = ()
    taken: tuple[str, ...] = ()


# --- from values ---------------------------------------------------------------------------------


def from_gui(values: Mapping[str, Any], folders: Folders = _NO_FOLDERS) -> Imported:
    """The settings of a kohya_ss GUI file."""
    intake = Intake(_with_folders(values, folders), "gui")
    take_additional(intake)
    _fill(intake, kohya_keys.GUI_ABSENT)
    return _finished(intake, folders)


def from_script(values: Mapping[str, Any], folders: Folders = _NO_FOLDERS) -> Imported:
    """The settings of sd-scripts' arguments, which may stand in sections, and of a dataset file."""
    intake = Intake(_with_folders(_flat(values), folders), "script")
    _fill(intake, kohya_keys.SCRIPT_ABSENT if values else kohya_keys.DATASET_ABSENT)
    if values and "max_train_epochs" not in intake:
        _fill(intake, {"max_train_steps": kohya_keys.SCRIPT_STEPS})
    return _finished(intake, folders)


def from_metadata(header: Header) -> Imported:
    """The settings that a LoRA file tells of; folders are never among them."""
    if CONFIG_KEY in header.metadata:
        return _from_our_metadata(header.metadata)
    told = {key: value for key, value in header.metadata.items() if key.startswith("ss_")}
    intake = Intake({_argument_name(key): value for key, value in told.items() if key != "ss_datasets"}, "metadata")
    folders = _folders_told(told.get("ss_datasets"))
    for key, value in folders.settings.items():
        intake.unfold("datasets", key, value)
    for name, key in (("train_unet", "lora_unet"), ("train_text_encoder", "lora_te")):
        intake.values[name] = any(tensor.startswith(key) for tensor in header.tensors) or not header.tensors
    for name in ("dataset_dirs", "reg_dataset_dirs"):
        value = intake.pop(name)
        if value is not None:
            intake.ignore(name, value, "names folders, not where they lie; choose the folder with your images")
    steps = intake.pop("max_train_steps") if "max_train_epochs" in intake else None
    if steps is not None:
        intake.ignore("max_train_steps", steps, f"{FACT}: it follows from the epochs")
    imported = _finished(intake, dataclasses.replace(folders, concepts=()))
    others = sorted(header.metadata.keys() - told.keys())
    facts = tuple(Ignored(key, header.metadata[key], FACT) for key in others)
    return dataclasses.replace(
        imported,
        ignored=(*(Ignored(_told_key(i.key), i.value, i.reason) for i in imported.ignored), *facts),
        taken=tuple(map(_told_key, imported.taken)),
    )


def _argument_name(key: str) -> str:
    name = key.removeprefix("ss_")
    return kohya_keys.METADATA_NAMES.get(name, name)


def _told_key(key: str) -> str:
    names = {name: told for told, name in kohya_keys.METADATA_NAMES.items()}
    head, sign, part = key.partition(":")
    return f"ss_{names.get(head, head)}{sign}{part}"


def _folders_told(raw: str | None) -> Folders:
    """What a file tells of several datasets; they are named as in a dataset file."""
    try:
        return read_folders({"datasets": literal_of(raw)}) if raw else _NO_FOLDERS
    except ConfigError:
        return Folders((), {}, (Ignored("datasets", raw, "cannot be read"),))


def _from_our_metadata(metadata: Mapping[str, str]) -> Imported:
    """Our own files hold every setting; of paths only the last part, which is of no use elsewhere."""
    values = literal_of(metadata[CONFIG_KEY])
    if not isinstance(values, dict):
        raise ConfigError([Problem("error", CONFIG_KEY, "is damaged: the LoRA file's settings cannot be read.")])
    tables = [table for table in values.pop("concepts", ()) if isinstance(table, dict)]
    names = [(name, values.pop(name)) for name in _PATHS if values.get(name)]
    names += [("folder", table.pop("folder")) for table in tables if table.get("folder")]
    known = {parameter.name for parameter in parameters_of(TrainConfig)}
    ignored = [Ignored(name, value, "is told without its place; choose it yourself") for name, value in names]
    ignored += [Ignored(name, value, UNKNOWN) for name, value in values.items() if name not in known]
    plain = {name: value for name, value in values.items() if name in known}
    config, problems = read_config({**plain, "concepts": tables})
    return Imported(config, tuple(ignored), problems, tuple(plain))


def _with_folders(values: Mapping[str, Any], folders: Folders) -> dict[str, Any]:
    """The settings, those of the dataset file before all others."""
    others = {key: value for key, value in values.items() if kohya_keys.ALIASES.get(key, key) not in folders.settings}
    return {**others, **folders.settings}


def _fill(intake: Intake, absent: Mapping[str, Any]) -> None:
    filled = [f"{name} {value}" for name, value in absent.items() if intake.fill(name, value)]
    if filled:
        intake.hint("", f"Not in the file, so kohya's own values are used: {', '.join(filled)}.")


def _finished(intake: Intake, folders: Folders) -> Imported:
    concepts = _with_switches(intake, folders.concepts or _data_folders(intake))
    for name in _FOLDER_KEYS:
        if name == "dataset_config" and folders.concepts:
            intake.pop(name)
        elif name in intake:
            reason = "gives way to the dataset file" if folders.concepts else "cannot be read; name it beside this file"
            intake.ignore(name, intake.value(name), reason)
    apply_rules(intake)
    declared = kohya_parameters()
    for name in intake.left:
        if name in declared:
            intake.put(declared[name], name, intake.pop(name))
    for name in intake.left:
        value = intake.pop(name)
        intake.ignore(name, value, _reason(name, value))
    config = with_repetitions_empty(TrainConfig(concepts=tuple(concepts), **intake.values))
    return Imported(config, (*intake.ignored, *folders.ignored), tuple(intake.problems), intake.taken)


def _data_folders(intake: Intake) -> tuple[Concept, ...]:
    """kohya's two folders, whose N_words sub-folders give the repeats; `data.scan` reads them just so."""
    found = []
    for name, is_regularisation in (("train_data_dir", False), ("reg_data_dir", True)):
        folder = intake.pop(name)
        if folder is not None:
            found.append(Concept(str(folder), is_regularisation=is_regularisation))
    return tuple(found)


def _with_switches(intake: Intake, concepts: tuple[Concept, ...]) -> tuple[Concept, ...]:
    """The folders with what kohya's tools switch on for all images."""
    for name, values in kohya_keys.FOLDER_SWITCHES.items():
        raw = intake.value(name)
        if raw is None:
            continue
        if not intake.pop_flag(name):
            intake.ignore(name, raw, AT_DEFAULT)
        elif not concepts:
            intake.ignore(name, raw, f"belongs to a folder: set {', '.join(values)} where you name your images")
        else:
            concepts = tuple(dataclasses.replace(concept, **values) for concept in concepts)
    return concepts


def with_repetitions_empty(config: TrainConfig) -> TrainConfig:
    """The same settings with what only repeats another one left empty: alpha as large as the rank, equal rates,
    convolutions as the other layers.
    """
    general = config.learning_rate
    conv = (config.rank if config.conv_rank is None else config.conv_rank, conv_alpha_of(config))
    if conv == (config.rank, config.effective_alpha) or config.targets not in ("all", "full"):
        config = config.replace(conv_rank=None, conv_alpha=None)
    elif conv[0] == conv[1]:
        config = config.replace(conv_rank=conv[0], conv_alpha=None)
    return config.replace(
        alpha=None if config.alpha == config.rank else config.alpha,
        unet_lr=None if config.unet_lr == general else config.unet_lr,
        text_encoder_lr=None if config.text_encoder_lr == general else config.text_encoder_lr,
        text_encoder_2_lr=None if config.text_encoder_2_lr == config.text_encoder_lr else config.text_encoder_2_lr,
    )


def _reason(name: str, value: Any) -> str:
    """Why a key that nothing has taken is set aside."""
    if name in kohya_keys.FACTS:
        return FACT
    if name in kohya_keys.NOT_NEEDED:
        return f"{NOT_NEEDED}: {kohya_keys.NOT_NEEDED[name]}"
    for prefix, why in kohya_keys.NOT_NEEDED_PREFIXES.items():
        if name.startswith(prefix):
            return f"{NOT_NEEDED}: {why}"
    if name in kohya_keys.DEFAULTS:
        return AT_DEFAULT if is_same(value, kohya_keys.DEFAULTS[name]) else NOT_YET
    return UNKNOWN


# --- from files ----------------------------------------------------------------------------------


def read_settings(path: Path, dataset: Path | None = None) -> Imported:
    """The settings in a .json, .toml or .safetensors file, with those of a dataset file of sd-scripts.

    Relative paths are taken from the file's folder. ConfigError or AdapterError, in one sentence, for a file that
    holds no settings.
    """
    ending = path.suffix.lower()
    readers = {".json": _read_text_settings, ".toml": _read_text_settings, ".safetensors": _read_lora_settings}
    if ending not in readers:
        what = "a .json of the kohya_ss GUI, a .toml of sd-scripts or a LoRA as .safetensors"
        raise _unusable(path, f"is none of the files that settings can be read from: {what}.")
    imported = readers[ending](path, dataset)
    config, moved = _placed(imported.config, path.absolute().parent)
    if moved:
        text = f"Relative paths are taken from the folder of {path.name}: {', '.join(moved)}."
        imported = dataclasses.replace(imported, problems=(*imported.problems, Problem("hint", "", text)))
    return dataclasses.replace(imported, config=config)


def _read_lora_settings(path: Path, dataset: Path | None) -> Imported:
    if dataset is not None:
        raise _unusable(path, "is a LoRA file and takes no dataset file. Leave it out.")
    header = read_header(path)
    if not any(key == CONFIG_KEY or key.startswith("ss_") for key in header.metadata):
        raise AdapterError(f"{path.name} tells nothing of its training: it was written without metadata.")
    return from_metadata(header)


def _read_text_settings(path: Path, dataset: Path | None) -> Imported:
    values = _read_values(path)
    if "datasets" in values:
        if dataset is not None:
            raise _unusable(path, "is a dataset file itself. Give the other settings first, or leave one out.")
        return from_script({}, read_folders(values))
    if _is_ours(values):
        config, problems = read_config(values)
        return Imported(config, (), problems, tuple(values))
    if not _knows_any(values):
        raise _unusable(path, "holds no settings of kohya's tools: none of its keys is one of theirs.")
    named = cleaned(_flat(values).get("dataset_config"))
    if dataset is None and named is not None and (path.parent / str(named)).is_file():
        dataset = path.parent / str(named)
    folders = read_folders(_read_values(dataset)) if dataset else _NO_FOLDERS
    if path.suffix.lower() == ".json":
        return from_gui(values, folders)
    return from_script(_with_read_prompts(_flat(values), path.parent), folders)


def _with_read_prompts(values: dict[str, Any], base: Path) -> dict[str, Any]:
    """sd-scripts' sample prompts stand in a text file; where it can be read, its lines take the place of its name."""
    named = values.get("sample_prompts")
    if not isinstance(named, str) or not named.strip().lower().endswith(".txt"):
        return values
    try:
        text = (base / user_path(named)).read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return values
    return {**values, "sample_prompts": text}


def _read_values(path: Path) -> Mapping[str, Any]:
    """The table in a .toml or .json file."""
    if path.suffix.lower() != ".json":
        return read_toml_config(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError):
        raise _unusable(path, "is not JSON. Save the settings again in kohya's GUI.") from None
    if not isinstance(values, dict):
        raise _unusable(path, "is not a table of settings.")
    return values


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(value if isinstance(value, Mapping) else {key: value})
    return flat


def _is_ours(values: Mapping[str, Any]) -> bool:
    """Whether the keys are our own; names that both know do not count."""
    own = {parameter.name for parameter in parameters_of(TrainConfig)} | {"concepts"}
    theirs = {*kohya_parameters(), *kohya_keys.ALIASES, *kohya_keys.DEFAULTS, *kohya_keys.NOT_NEEDED}
    keys = {str(key) for key in values}
    return len(keys & (own - theirs)) > len(keys & (theirs - own))


def _knows_any(values: Mapping[str, Any]) -> bool:
    flat = {str(key) for key in _flat(values)}
    known = (*kohya_parameters(), *kohya_keys.ALIASES, *kohya_keys.DEFAULTS, *kohya_keys.NOT_NEEDED, *_FOLDER_KEYS)
    return bool(flat.intersection((*known, "LoRA_type", "network_module")))


def _unusable(path: Path, message: str) -> ConfigError:
    return ConfigError([Problem("error", str(path), message)])


def _placed(config: TrainConfig, base: Path) -> tuple[TrainConfig, list[str]]:
    """The config with relative paths made absolute, and what they were."""
    moved: list[str] = []

    def place(path: str) -> str:
        expanded = user_path(path)
        if not path or expanded.is_absolute() or PureWindowsPath(path).is_absolute():
            return str(expanded) if path else path
        moved.append(path)
        return os.path.normpath(base / expanded)

    concepts = tuple(dataclasses.replace(concept, folder=place(concept.folder)) for concept in config.concepts)
    paths = {name: place(getattr(config, name)) for name in _PATHS}
    return config.replace(concepts=concepts, **paths), moved
