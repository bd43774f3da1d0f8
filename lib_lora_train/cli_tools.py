"""The commands for finished LoRA files: `check` and `convert`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.cli_settings import refuse
from lib_lora_train.config import TrainConfig
from lib_lora_train.errors import LoraTrainError

BROKEN = 2


def add_tools(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands for finished LoRA files."""
    look = command(commands, "check", run_check, "Tell what is in a LoRA file of any family.")
    look.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file")

    turn = command(commands, "convert", run_convert, "Write a LoRA file of any family as one that every webui reads.")
    turn.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file")
    turn.add_argument("--to", choices=("lora", "diff"), default="lora", help="a LoRA, or the exact difference (large)")
    turn.add_argument("--rank", type=int, default=16, help="rank of the LoRA (default: 16)")
    turn.add_argument("--ckpt", default="", metavar="FILE", help="the checkpoint it is for (default: the tiny model)")
    turn.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: FILE-rank16 and so on, here)")


def run_check(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Print what is in the file; 2 where it cannot be used as it is."""
    refuse(unknown)
    from lib_lora_train.tools.check import check_file, report

    checked = check_file(options.file)
    print(report(checked))
    return BROKEN if checked.broken else 0


def run_convert(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Write the converted file and print how much was lost."""
    refuse(unknown)
    from lib_lora_train.adapters.file import read_adapter
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.tools.convert import convert, write_converted

    file = read_adapter(options.file)
    ending = "diff" if options.to == "diff" else f"rank{options.rank}"
    place = options.out or _new_file(f"{options.file.stem}-{ending}.safetensors")
    config = TrainConfig(checkpoint=options.ckpt, precision="fp32")
    host = StandaloneHost(None, None, place.parent)
    model = host.load_model(config)
    converted = convert(file, model, to=options.to, rank=options.rank)
    saved = write_converted(place, converted, to=options.to, rank=options.rank, metadata=file.metadata)
    print(f"Written: {place} ({saved.size_bytes / 2**20:.1f} MiB). Lost: {converted.error:.2%} of the update.")
    if converted.error:
        print(f"Most was lost in {converted.worst}. A higher --rank loses less; --to diff loses nothing.")
    if converted.left_out:
        print("Left out:", *converted.left_out, sep="\n  - ")
    return 0


def _new_file(name: str) -> Path:
    """A file in the folder one is in; what is there already is never overwritten."""
    place = Path(name)
    if place.exists():
        raise LoraTrainError(f"{place} is there already. Choose another place with --out.")
    return place
