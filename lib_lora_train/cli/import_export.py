"""The commands for other programs' settings: `import` and `export`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.cli.settings import require_new_file
from lib_lora_train.config.train_config import read_config
from lib_lora_train.core.errors import SettingsFileError

if TYPE_CHECKING:
    from lib_lora_train.formats.kohya.exporter import Target


def add_import_export(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands for other programs' settings."""
    importer = command(commands, "import", run_import, "Convert settings of kohya, OneTrainer or a LoRA to TOML.")
    importer.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="kohya_ss or OneTrainer .json, sd-scripts .toml or .safetensors",
    )
    importer.add_argument("--dataset", type=Path, metavar="DATASET.toml", help="sd-scripts' dataset file, if any")
    importer.add_argument(
        "--out", type=Path, metavar="CONFIG.toml", help="output file (default: FILE's name in the current folder)"
    )

    exporter = command(commands, "export", run_export, "Convert a TOML file for the kohya_ss GUI or sd-scripts.")
    exporter.add_argument("file", type=Path, metavar="CONFIG.toml", help="the settings file")
    exporter.add_argument(
        "--to", choices=("kohya_ss", "sd-scripts"), help="the program (default: by the ending of --out, else kohya_ss)"
    )
    exporter.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="output .json for kohya_ss or .toml for sd-scripts (default: CONFIG.json or CONFIG-kohya.toml here)",
    )


def run_import(options: argparse.Namespace) -> int:
    """Write imported settings as TOML, and print what was not imported and why."""
    from lib_lora_train.config.validation.validate import validate
    from lib_lora_train.formats.kohya.read_files import read_settings
    from lib_lora_train.formats.kohya.report import describe_lost, describe_unneeded
    from lib_lora_train.formats.toml import write_toml_config

    imported = read_settings(options.file, options.dataset)
    path = require_new_file(options.out or Path(f"{options.file.stem}.toml"))
    write_toml_config(path, imported.config)
    print(f"Settings imported from {options.file.name}: {len(imported.used_keys)}. Saved to {path}")
    _print_list("Imported with differences", [f"{p.level}: {p}" for p in imported.problems])
    _print_list("Not imported", describe_lost(imported.ignored))
    _print_list("No effect", describe_unneeded(imported.ignored))
    _print_list("Fix before training", [str(p) for p in validate(imported.config) if p.level == "error"])
    return 0


def run_export(options: argparse.Namespace) -> int:
    """Write the settings for the kohya_ss GUI or sd-scripts, and print what they do not support."""
    from lib_lora_train.config.validation.validate import require_usable
    from lib_lora_train.formats.kohya.exporter import write_exported
    from lib_lora_train.formats.kohya.report import describe_lost, describe_unneeded
    from lib_lora_train.formats.toml import read_toml_config

    config, problems = read_config(read_toml_config(options.file))
    require_usable(problems)
    target, path = _export_place(options)
    exported = write_exported(require_new_file(path), config, target)
    print(f"Saved to {', '.join(map(str, exported.paths))}")
    _print_list("To do", exported.to_do)
    _print_list(f"Not kept by {target}", describe_lost(exported.lost))
    _print_list("Not kept, without a difference to training", describe_unneeded(exported.lost))
    return 0


def _export_place(options: argparse.Namespace) -> tuple[Target, Path]:
    """The program and the output file; SettingsFileError if the file's ending is another program's."""
    from lib_lora_train.formats.kohya.exporter import ENDINGS, target_of

    target: Target = options.to or (target_of(options.out) if options.out else "kohya_ss")
    ending = ENDINGS[target]
    if options.out is None:
        return target, Path(f"{options.file.stem}{'' if target == 'kohya_ss' else '-kohya'}{ending}")
    if target_of(options.out) != target:
        raise SettingsFileError(options.out, f"must end in {ending}, which {target} reads. Change --out or --to.")
    return target, options.out


def _print_list(title: str, lines: Sequence[str]) -> None:
    if lines:
        print("\n".join([f"\n{title}:", *(f"  - {line}" for line in lines)]))
