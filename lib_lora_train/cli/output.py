"""Where a tool of the command line writes its new file."""

from __future__ import annotations

import argparse
from pathlib import Path

from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.lora_tools.new_file import ENDING, new_file


def add_output(
    command: argparse.ArgumentParser, default: str, meaning: str = "name of the new file and of the LoRA in prompts"
) -> None:
    """Add the name and folder of the file that a tool writes; `default` is its usual name."""
    command.add_argument("--name", default="", help=f"{meaning} (default: {default})")
    command.add_argument(
        "--out", type=Path, metavar="PATH", help="its folder, or the whole file (default: the current folder)"
    )


def output_path(options: argparse.Namespace, default: str) -> Path:
    """The file to write; LoraTrainError if its name cannot be used or it exists."""
    given = user_path(str(options.out)) if options.out else Path()
    if given.is_dir():
        return new_file(given, options.name or default)
    if options.name:
        raise LoraTrainError(f"{given} is not a folder. With --name, give the folder as --out.")
    return new_file(given.parent, given.name.removesuffix(ENDING))
