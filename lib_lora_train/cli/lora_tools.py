"""The commands for finished LoRA files: `check`, `convert` and `merge`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.cli.settings import refuse
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.user_paths import user_path

BROKEN = 2
_ROUNDING = 5e-3  # of an update: more than what numbers of 16 bits lose


def add_tools(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands for finished LoRA files."""
    look = command(commands, "check", run_check, "Tell what is in a LoRA file of any family.")
    look.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file")

    turn = command(commands, "convert", run_convert, "Write a LoRA file of any family as one that every webui reads.")
    turn.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file")
    turn.add_argument("--to", choices=("lora", "diff"), default="lora", help="a LoRA, or the exact difference (large)")
    turn.add_argument("--rank", type=int, default=16, help="rank of the LoRA (default: 16)")
    turn.add_argument("--ckpt", default="", metavar="FILE", help="the checkpoint it is for (default: the tiny model)")
    _add_precision(turn)
    turn.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: FILE-rank16 and so on, here)")

    both = command(commands, "merge", run_merge, "Add LoRA files of any family up: as one file, or into a checkpoint.")
    both.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".safetensors files")
    both.add_argument(
        "--weights", type=float, nargs="+", default=[], metavar="W", help="one for each file (default: 1)"
    )
    both.add_argument("--to", choices=("lora", "diff"), default="lora", help="a LoRA, or the exact difference (large)")
    both.add_argument("--rank", type=int, default=0, help="cut to this rank (default: 0, all ranks together, exact)")
    both.add_argument(
        "--ckpt", default="", metavar="FILE", help="the checkpoint they are for (default: the tiny model)"
    )
    _add_precision(both)
    both.add_argument("--into", action="store_true", help="write a new checkpoint with them in its weights")
    both.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: A+B or CKPT+A+B, here)")


def _add_precision(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--precision", choices=("fp16", "bf16", "fp32"), default="fp16", help="of the file's numbers (default: fp16)"
    )


def run_check(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Print what is in the file; 2 where it cannot be used as it is."""
    refuse(unknown)
    from lib_lora_train.lora_tools.check import check_file, format_report

    checked = check_file(options.file)
    print(format_report(checked))
    return BROKEN if checked.broken else 0


def run_convert(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Write the converted file and print how much was lost."""
    refuse(unknown)
    from lib_lora_train.adapters.files.lora_file import read_adapter
    from lib_lora_train.lora_tools.convert import base_mismatch, convert, write_converted

    file, checkpoint = read_adapter(options.file), _checkpoint(options)
    ending = "diff" if options.to == "diff" else f"rank{options.rank}"
    place = options.out or _new_file(f"{options.file.stem}-{ending}.safetensors")
    model = _model(checkpoint, place.parent)
    converted = convert(file, model, to=options.to, rank=options.rank, precision=options.precision)
    saved = write_converted(place, converted, to=options.to, rank=options.rank, metadata=file.metadata)
    print(f"Written: {place} ({saved.size_bytes / 2**20:.1f} MiB). Lost: {converted.error:.2%} of the update.")
    if options.to == "lora" and converted.error > _ROUNDING:
        print(f"Most was lost in {converted.worst}. A higher --rank loses less; --to diff loses nothing but rounding.")
    if converted.left_out:
        print("Left out:", *converted.left_out, sep="\n  - ")
    _warn([base_mismatch(file, checkpoint)])
    return 0


def run_merge(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Write the sum of the files, or the checkpoint with it, and print what was lost."""
    refuse(unknown)
    from lib_lora_train.adapters.files.lora_file import read_adapter
    from lib_lora_train.lora_tools.convert import base_mismatch
    from lib_lora_train.lora_tools.merge import merge_into_file
    from lib_lora_train.lora_tools.merge_into_checkpoint import weighted, write_merged_checkpoint

    files = weighted([read_adapter(path) for path in options.files], options.weights)
    checkpoint = _checkpoint(options)
    named = "+".join(path.stem for path in options.files)
    if options.into:
        place = options.out or _new_file(f"{checkpoint.stem}+{named}.safetensors")
        baked = write_merged_checkpoint(checkpoint, files, place)
        print(f"Written: {place} ({baked.size_bytes / 2**20:.1f} MiB), {baked.layers} layers changed.")
        left_out = baked.left_out
    else:
        place = options.out or _new_file(f"{named}.safetensors")
        model = _model(checkpoint, place.parent)
        merged, saved = merge_into_file(
            place, files, model, to=options.to, rank=options.rank, precision=options.precision
        )
        print(f"Written: {place} ({saved.size_bytes / 2**20:.1f} MiB). Lost: {merged.error:.2%} of the update.")
        left_out = merged.left_out
    if left_out:
        print("Left out:", *left_out, sep="\n  - ")
    _warn([base_mismatch(file, checkpoint) for file, _ in files])
    return 0


def _warn(sentences: Sequence[str]) -> None:
    for sentence in filter(None, sentences):
        print(f"warning: {sentence}")


def _checkpoint(options: argparse.Namespace) -> Path:
    """The one that is named, else the tiny model's."""
    from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT

    return user_path(options.ckpt) if options.ckpt else EMBEDDED_CHECKPOINT


def _model(checkpoint: Path, folder: Path) -> Any:
    """The checkpoint in full precision."""
    from lib_lora_train.hosts.standalone import StandaloneHost

    return StandaloneHost(None, None, folder).load_model(TrainConfig(checkpoint=str(checkpoint), precision="fp32"))


def _new_file(name: str) -> Path:
    """A file in the folder one is in; what is there already is never overwritten."""
    place = Path(name)
    if place.exists():
        raise LoraTrainError(f"{place} is there already. Choose another place with --out.")
    return place
