"""The commands for other programs' settings: `import` and `export`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.cli.settings import require_new_file
from lib_lora_train.config.train_config import read_config


def add_import_export(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands for other programs' settings."""
    importer = command(commands, "import", run_import, "Convert kohya settings or a LoRA's metadata to TOML.")
    importer.add_argument(
        "file", type=Path, metavar="FILE", help="a kohya_ss .json, an sd-scripts .toml or a .safetensors"
    )
    importer.add_argument("--dataset", type=Path, metavar="DATASET.toml", help="sd-scripts' dataset file, if any")
    importer.add_argument(
        "--out", type=Path, metavar="CONFIG.toml", help="output file (default: FILE's name in the current folder)"
    )

    exporter = command(commands, "export", run_export, "Convert a TOML file to a kohya_ss .json.")
    exporter.add_argument("file", type=Path, metavar="CONFIG.toml", help="the settings file")
    exporter.add_argument(
        "--out", type=Path, metavar="FILE.json", help="output file (default: CONFIG's name in the current folder)"
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
    """Write the settings for the kohya_ss GUI, and print what it does not support."""
    from lib_lora_train.config.validation.validate import require_usable
    from lib_lora_train.formats.kohya.exporter import write_gui_settings
    from lib_lora_train.formats.kohya.report import describe_lost
    from lib_lora_train.formats.toml import read_toml_config

    config, problems = read_config(read_toml_config(options.file))
    require_usable(problems)
    path = require_new_file(options.out or Path(f"{options.file.stem}.json"))
    exported = write_gui_settings(path, config)
    print(f"Saved to {path}")
    _print_list("Not supported by the kohya_ss GUI", describe_lost(exported.lost))
    return 0


def _print_list(title: str, lines: Sequence[str]) -> None:
    if lines:
        print("\n".join([f"\n{title}:", *(f"  - {line}" for line in lines)]))
