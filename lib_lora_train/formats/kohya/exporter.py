"""Our settings as files for the kohya_ss GUI and for sd-scripts, with a list of what these cannot express.

The GUI's .json has the two folders of images itself if they are laid out as it needs them. In all other cases there
is a dataset file beside it, which sd-scripts needs anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import tomlkit

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import ConfigError, OutputError, Problem, SettingsFileError
from lib_lora_train.formats.kohya.dataset import read_folders
from lib_lora_train.formats.kohya.dataset_export import (
    Subset,
    absolute_path,
    dataset_table,
    read_subsets,
    with_own_values,
)
from lib_lora_train.formats.kohya.export_account import lost_settings
from lib_lora_train.formats.kohya.gui_export import fits_gui_folders, gui_values
from lib_lora_train.formats.kohya.import_state import IgnoredKey
from lib_lora_train.formats.kohya.importer import NO_FOLDERS, from_gui, from_script
from lib_lora_train.formats.kohya.script_export import script_arguments

Target = Literal["kohya_ss", "sd-scripts"]
TARGETS: tuple[Target, ...] = get_args(Target)
"""The programs to export for."""

ENDINGS: Mapping[Target, str] = {"kohya_ss": ".json", "sd-scripts": ".toml"}


def target_of(path: Path) -> Target:
    """The program whose files end like this one; SettingsFileError for another ending."""
    for target, ending in ENDINGS.items():
        if path.suffix.lower() == ending:
            return target
    raise SettingsFileError(path, "must end in .json (for the kohya_ss GUI) or .toml (for sd-scripts).")


@dataclass(frozen=True)
class Exported:
    """The values of the files, our settings that they cannot hold (each with the reason), and what is still to do.

    `values` are the GUI's, or sd-scripts' arguments. `dataset` is empty if there is no dataset file. `prompts` are the
    lines of sd-scripts' file with sample prompts. `paths` are the files, once they are written.
    """

    values: dict[str, Any]
    lost: tuple[IgnoredKey, ...]
    dataset: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    to_do: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()


def to_gui(config: TrainConfig) -> Exported:
    """The settings for the GUI. Imported again they give the same config, except for what `lost` names."""
    _require_lora(config)
    if fits_gui_folders(config):
        values = gui_values(config)
        folders = (replace(one, folder=absolute_path(one.folder)) for one in config.concepts)
        subsets = tuple(Subset(place, with_own_values(config, one)) for place, one in enumerate(folders))
        lost = lost_settings(config, from_gui(values).config, subsets, "the GUI")
        return Exported(values, lost, to_do=_to_do(config))
    subsets = read_subsets(config)
    values, dataset = gui_values(config, has_dataset=True), dataset_table(config, subsets)
    read_back = from_gui(values, read_folders(dataset)).config
    lost = lost_settings(config, read_back, subsets, "the GUI")
    return Exported(values, lost, dataset, to_do=_to_do(config))


def to_script(config: TrainConfig) -> Exported:
    """The settings for sd-scripts. Imported again they give the same config, except for what `lost` names."""
    _require_lora(config)
    subsets = read_subsets(config)
    values = script_arguments(config, subsets)
    dataset = dataset_table(config, subsets) if subsets else {}
    prompts = config.sample_prompts
    with_prompts = {**values, "sample_prompts": prompts} if prompts else values
    read_back = from_script(with_prompts, read_folders(dataset) if dataset else NO_FOLDERS).config
    lost = lost_settings(config, read_back, subsets, "sd-scripts")
    return Exported(values, lost, dataset, prompts, _to_do(config))


def _require_lora(config: TrainConfig) -> None:
    if config.method != "lora":
        text = f"is {config.method}: only the settings of a LoRA can be exported for kohya's tools."
        raise ConfigError([Problem("error", "method", text)])


def write_exported(path: Path, config: TrainConfig, target: Target) -> Exported:
    """Write the file for the program, and beside it the dataset file and the file with sample prompts that it needs.

    OutputError if one of them is there already or cannot be written.
    """
    exported = to_gui(config) if target == "kohya_ss" else to_script(config)
    dataset = path.with_name(f"{path.stem}-dataset.toml") if exported.dataset else None
    prompts = path.with_name(f"{path.stem}-prompts.txt") if exported.prompts else None
    paths = tuple(one for one in (path, dataset, prompts) if one)
    for one in paths:
        if one.exists():
            raise OutputError(f"{one} already exists. Choose another name.")
    values = dict(exported.values)
    if dataset:
        values["dataset_config"] = str(dataset.absolute())
        atomic_write.write_text(dataset, _toml(exported.dataset))
    if prompts:
        values["sample_prompts"] = str(prompts.absolute())
        atomic_write.write_text(prompts, "\n".join(exported.prompts) + "\n")
    is_json = target == "kohya_ss"
    text = json.dumps(values, indent=2, ensure_ascii=False) if is_json else _COMMENT.format(path.name) + _toml(values)
    atomic_write.write_text(path, text)
    return replace(exported, paths=paths)


_COMMENT = """# For sd-scripts: accelerate launch train_network.py --config_file {}
# (sdxl_train_network.py for SDXL; SD2 also needs --v2)
"""


def _toml(values: Mapping[str, Any]) -> str:
    return str(tomlkit.dumps(values))


def _to_do(config: TrainConfig) -> tuple[str, ...]:
    """What the user has to fill in before the other program can start."""
    checkpoint = "" if config.checkpoint else "Fill in pretrained_model_name_or_path: your settings have no checkpoint."
    folder = "" if config.output_dir else "Fill in output_dir: your settings have no folder for the LoRA files."
    detected = "Turn on v_parameterization, and zero_terminal_snr if it has that, for a checkpoint that predicts v."
    return tuple(filter(None, (checkpoint, folder, detected if config.prediction_type == "auto" else "")))
