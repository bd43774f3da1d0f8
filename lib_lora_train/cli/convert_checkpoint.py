"""The command `convert-checkpoint`: a checkpoint as safetensors, in another precision, with another VAE."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib_lora_train.cli.output import add_output, output_path
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.lora_tools.checkpoint_changes import EMA_CHOICES, PRECISIONS, CheckpointChanges


def add_convert_checkpoint(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    summary = "Write a checkpoint (.ckpt or .safetensors) as safetensors: smaller, or with a VAE in it."
    parser = command(commands, "convert-checkpoint", run_convert_checkpoint, summary)
    parser.add_argument("file", type=Path, metavar="FILE", help="a checkpoint or VAE: .safetensors, .ckpt, .pt")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="", help="precision of the weights (default: as they are)"
    )
    parser.add_argument("--vae", type=Path, metavar="FILE", help="a VAE to put in place of the checkpoint's own")
    parser.add_argument(
        "--ema",
        choices=tuple(EMA_CHOICES),
        default="drop",
        help="; ".join(f"{name}: {meaning}" for name, meaning in EMA_CHOICES.items()) + " (default: drop)",
    )
    add_output(parser, "FILE, or FILE-fp16 or similar", "name of the new file")


def run_convert_checkpoint(options: argparse.Namespace) -> int:
    """Write the checkpoint and print what is different in it."""
    from tqdm import tqdm

    from lib_lora_train.lora_tools.convert_checkpoint import convert_checkpoint

    source, vae = user_path(str(options.file)), user_path(str(options.vae)) if options.vae else None
    changes = CheckpointChanges(options.precision, vae, options.ema)
    path = output_path(options, "-".join(filter(None, (source.stem, changes.name))))
    with tqdm(desc="tensors", leave=False, disable=None) as meter:

        def show(done: int, total: int) -> None:
            meter.total = total
            meter.update(done - meter.n)

        written = convert_checkpoint(source, path, changes, on_tensor=show)
    print(f"Saved to {path} ({written.size_bytes / 2**20:,.1f} MiB).", *written.notes, sep="\n")
    return 0
