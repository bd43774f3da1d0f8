"""Settings of kohya's tools as ours, from the values in the GUI's .json, sd-scripts' .toml or a LoRA's metadata.

Names are matched by the `kohya=` names that the parameters declare; `rules` has the keys whose meaning differs. Nothing
is lost silently: every key is either imported or in `Imported.ignored` with the reason. `read_files` reads the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.family_catalog import families_with
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import CONFIG_KEY, Concept, TrainConfig, read_config
from lib_lora_train.core.errors import ConfigError, Problem
from lib_lora_train.core.safetensors_header import Header
from lib_lora_train.formats.kohya import keys as kohya_keys
from lib_lora_train.formats.kohya.dataset import Folders, read_folders
from lib_lora_train.formats.kohya.import_state import (
    AT_DEFAULT,
    FACT,
    NOT_NEEDED,
    NOT_YET,
    IgnoredKey,
    ImportState,
    is_same,
    kohya_parameters,
    parse_literal,
    unknown,
)
from lib_lora_train.formats.kohya.network_export import conv_alpha_of, effective_block_alphas
from lib_lora_train.formats.kohya.rules import apply_rules, import_additional_parameters
from lib_lora_train.formats.toml import PATH_SETTINGS

NO_FOLDERS = Folders((), {}, ())
FOLDER_KEYS = ("train_data_dir", "reg_data_dir", "dataset_config")


@dataclass(frozen=True)
class Imported:
    """Imported settings, and what happened to the rest.

    `problems` lists what is trained differently here; the config has not been through `validate` yet. `used_keys` are
    the keys of the file that are in the config.
    """

    config: TrainConfig
    ignored: tuple[IgnoredKey, ...] = ()
    problems: tuple[Problem, ...] = ()
    used_keys: tuple[str, ...] = ()


def from_gui(values: Mapping[str, Any], folders: Folders = NO_FOLDERS) -> Imported:
    """The settings of a kohya_ss GUI file."""
    state = ImportState(_with_folders(values, folders), "gui")
    import_additional_parameters(state)
    _set_defaults(state, {**kohya_keys.GUI_ABSENT, **_gui_lengths(state)})
    return _finish(state, folders)


def _gui_lengths(state: ImportState) -> dict[str, Any]:
    """What the GUI's form has for lengths that the file leaves out.

    Its 1600 steps are not among them: only files of versions without that value leave it out.
    """
    lengths: dict[str, Any] = {}
    is_constant = str(state.value("lr_scheduler") or "").lower() in ("constant", "adafactor")
    if not is_constant and "lr_warmup_steps" not in state:
        lengths["lr_warmup"] = kohya_keys.GUI_WARMUP
    if "max_train_steps" not in state and "max_train_epochs" not in state:
        lengths["epoch"] = 1
    return lengths


def from_script(values: Mapping[str, Any], folders: Folders = NO_FOLDERS) -> Imported:
    """The settings of sd-scripts' arguments, with or without sections, and of a dataset file."""
    state = ImportState(_with_folders(flat_values(values), folders), "script")
    has_epochs = not values or "max_train_epochs" in state
    steps = {} if has_epochs else {"max_train_steps": kohya_keys.SCRIPT_STEPS}
    _set_defaults(state, {**(kohya_keys.SCRIPT_ABSENT if values else kohya_keys.DATASET_ABSENT), **steps})
    return _finish(state, folders)


def from_metadata(header: Header) -> Imported:
    """The settings in a LoRA file's metadata; it never has folders."""
    if CONFIG_KEY in header.metadata:
        return _from_our_metadata(header.metadata)
    ss_values = {key: value for key, value in header.metadata.items() if key.startswith("ss_")}
    state = ImportState(
        {_argument_name(key): value for key, value in ss_values.items() if key != "ss_datasets"}, "metadata"
    )
    folders = _metadata_folders(ss_values.get("ss_datasets"))
    for key, value in folders.settings.items():
        state.add_nested("datasets", key, value)
    for name, key in (("train_unet", "lora_unet"), ("train_text_encoder", "lora_te")):
        state.values[name] = any(tensor.startswith(key) for tensor in header.tensors) or not header.tensors
    for name in ("dataset_dirs", "reg_dataset_dirs"):
        value = state.pop(name)
        if value is not None:
            state.ignore(name, value, "has folder names without their location. Select the folder with your images")
    steps = state.pop("max_train_steps") if "max_train_epochs" in state else None
    if steps is not None:
        state.ignore("max_train_steps", steps, f"{FACT}: it follows from the epochs")
    imported = _finish(state, dataclasses.replace(folders, concepts=()))
    others = sorted(header.metadata.keys() - ss_values.keys())
    facts = tuple(IgnoredKey(key, header.metadata[key], FACT) for key in others)
    return dataclasses.replace(
        imported,
        ignored=(*(IgnoredKey(_metadata_key(i.key), i.value, i.reason) for i in imported.ignored), *facts),
        used_keys=tuple(map(_metadata_key, imported.used_keys)),
    )


def known_keys() -> set[str]:
    """The names of kohya's tools that are imported, or known to be unneeded or not supported."""
    known = (*kohya_parameters(), *kohya_keys.ALIASES, *kohya_keys.DEFAULTS, *kohya_keys.NOT_NEEDED, *FOLDER_KEYS)
    return {*known, "LoRA_type", "network_module"}


def flat_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file with or without sections."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(value if isinstance(value, Mapping) else {key: value})
    return flat


def _argument_name(key: str) -> str:
    name = key.removeprefix("ss_")
    return kohya_keys.METADATA_NAMES.get(name, name)


def _metadata_key(key: str) -> str:
    names = {name: stored for stored, name in kohya_keys.METADATA_NAMES.items()}
    head, sign, part = key.partition(":")
    return f"ss_{names.get(head, head)}{sign}{part}"


def _metadata_folders(raw: str | None) -> Folders:
    """Several datasets in the metadata, with the keys of a dataset file."""
    try:
        return read_folders({"datasets": parse_literal(raw)}) if raw else NO_FOLDERS
    except ConfigError:
        return Folders((), {}, (IgnoredKey("datasets", raw, "cannot be read"),))


def _from_our_metadata(metadata: Mapping[str, str]) -> Imported:
    """The settings of LoRA files trained here; of paths these have only the last part, which cannot be used."""
    values = parse_literal(metadata[CONFIG_KEY])
    if not isinstance(values, dict):
        raise ConfigError([Problem("error", CONFIG_KEY, "is damaged: the settings in the LoRA file cannot be read.")])
    found = values.pop("concepts", ())
    entries = list(found) if isinstance(found, (list, tuple)) else []
    tables = [entry for entry in entries if isinstance(entry, dict)]
    ignored = [] if isinstance(found, (list, tuple)) else [IgnoredKey("concepts", found, "is not a list of folders")]
    ignored += [
        IgnoredKey(f"concepts[{number}]", entry, "is not a folder with its settings")
        for number, entry in enumerate(entries, start=1)
        if not isinstance(entry, dict)
    ]
    names = [(name, values.pop(name)) for name in PATH_SETTINGS if values.get(name)]
    names += [("folder", table.pop("folder")) for table in tables if table.get("folder")]
    known = {parameter.name for parameter in parameters_of(TrainConfig)}
    ignored += [IgnoredKey(name, value, "is stored without its folder. Select it yourself") for name, value in names]
    ignored += [IgnoredKey(name, value, unknown(name, known)) for name, value in values.items() if name not in known]
    plain = {name: value for name, value in values.items() if name in known}
    config, problems = read_config({**plain, "concepts": tables})
    return Imported(config, tuple(ignored), problems, tuple(plain))


def _with_folders(values: Mapping[str, Any], folders: Folders) -> dict[str, Any]:
    """The settings, with those of the dataset file taking precedence."""
    others = {key: value for key, value in values.items() if kohya_keys.ALIASES.get(key, key) not in folders.settings}
    return {**others, **folders.settings}


def _set_defaults(state: ImportState, absent: Mapping[str, Any]) -> None:
    filled = [f"{name} {value}" for name, value in absent.items() if state.set_default(name, value) and value != ""]
    if filled:
        state.hint("", f"Not in the file, so kohya's defaults are used: {', '.join(filled)}.")


def _finish(state: ImportState, folders: Folders) -> Imported:
    concepts = _with_switches(state, folders.concepts or _data_folders(state))
    for name in FOLDER_KEYS:
        if name == "dataset_config" and folders.concepts:
            state.pop(name)
        elif name in state:
            reason = (
                "is overridden by the dataset file"
                if folders.concepts
                else "cannot be read. Import it together with this file"
            )
            state.ignore(name, state.value(name), reason)
    if any(concept.own_prefix or concept.own_suffix for concept in concepts):
        state.values["affixes_as_tags"] = True
    apply_rules(state)
    declared = kohya_parameters()
    for name in state.remaining:
        if name in declared:
            state.set_parameter(declared[name], name, state.pop(name))
    readable = known_keys().union(state.asked_for)
    for name in state.remaining:
        value = state.pop(name)
        state.ignore(name, value, _reason(name, value, readable))
    config = clear_redundant_values(TrainConfig(concepts=tuple(concepts), **state.values))
    return Imported(config, (*state.ignored, *folders.ignored), _sorted(state.problems), state.used_keys)


def _sorted(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """What is trained differently first, then how the file was interpreted."""
    return tuple(sorted(problems, key=lambda problem: problem.level == "hint"))


def _data_folders(state: ImportState) -> tuple[Concept, ...]:
    """kohya's two folders, whose N_words subfolders give the repeats; `dataset.scan` reads them the same way."""
    found = []
    for name, is_regularisation in (("train_data_dir", False), ("reg_data_dir", True)):
        folder = state.pop(name)
        listed = state.pop("in_json") if name == "train_data_dir" else None
        if listed is not None:  # kohya's fine-tuning: the images of this folder itself
            repeats = int(state.pop_number("dataset_repeats") or 1)
            found.append(Concept(str(folder or ""), repeats=max(repeats, 1), caption_file=str(listed)))
        elif folder is not None:
            found.append(Concept(str(folder), is_regularisation=is_regularisation))
    return tuple(found)


def _with_switches(state: ImportState, concepts: tuple[Concept, ...]) -> tuple[Concept, ...]:
    """The folders with the switches that kohya's tools have for all images."""
    for name, values in kohya_keys.FOLDER_SWITCHES.items():
        raw = state.value(name)
        if raw is None:
            continue
        if not state.pop_flag(name):
            state.ignore(name, raw, AT_DEFAULT)
        elif not concepts:
            state.ignore(name, raw, f"is a setting of the folder here: set {', '.join(values)} there")
        else:
            concepts = tuple(dataclasses.replace(concept, **values) for concept in concepts)
    return concepts


def clear_redundant_values(config: TrainConfig) -> TrainConfig:
    """The same settings, with values that only repeat another one cleared: alpha, learning rates, convolutions."""
    general = config.learning_rate
    has_alpha = config.family in families_with("conv_alpha")
    conv = (
        config.rank if config.conv_rank is None else config.conv_rank,
        conv_alpha_of(config) if has_alpha else config.effective_alpha,
    )
    is_same = conv == (config.rank, config.effective_alpha) and not config.block_ranks  # which are for convolutions too
    if is_same or config.targets not in ("all", "full"):
        config = config.replace(conv_rank=None, conv_alpha=None)
    elif conv[0] == conv[1] or not has_alpha:
        config = config.replace(conv_rank=conv[0], conv_alpha=None)
    if config.block_alphas and config.block_alphas == effective_block_alphas(config.replace(block_alphas="")):
        config = config.replace(block_alphas="")
    if config.family == "lokr" and config.full_matrix:
        config = config.replace(rank=TrainConfig().rank, alpha=None, conv_rank=None, conv_alpha=None)
    return config.replace(
        alpha=None if config.alpha == config.rank else config.alpha,
        unet_lr=None if config.unet_lr == general else config.unet_lr,
        text_encoder_lr=None if config.text_encoder_lr == general else config.text_encoder_lr,
        text_encoder_2_lr=None if config.text_encoder_2_lr == config.text_encoder_lr else config.text_encoder_2_lr,
    )


def _reason(name: str, value: Any, readable: Iterable[str]) -> str:
    """Why a key that no rule has read is ignored; `readable` are the keys that are read."""
    if name in kohya_keys.FACTS:
        return FACT
    if name in kohya_keys.NOT_NEEDED:
        return f"{NOT_NEEDED}: {kohya_keys.NOT_NEEDED[name]}"
    for prefix, why in kohya_keys.NOT_NEEDED_PREFIXES.items():
        if name.startswith(prefix):
            return f"{NOT_NEEDED}: {why}"
    if name in kohya_keys.DEFAULTS:
        return AT_DEFAULT if is_same(value, kohya_keys.DEFAULTS[name]) else NOT_YET
    return unknown(name, readable)
