"""The command `grid`: the epochs of a past run × prompts × strengths, drawn without a webui."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from lib_lora_train.cli.past_run import add_run_folder, open_run_folder
from lib_lora_train.config.settings.samples import SAMPLERS


def add_grid(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    grid = command(commands, "grid", run_grid, "Draw all epochs of a past run, with a first row without LoRA.")
    add_run_folder(grid)
    grid.add_argument(
        "--strengths", default="1", metavar="LIST", help='one row per epoch and strength: "0.6, 0.8, 1" (default: 1)'
    )
    grid.add_argument("--triggers", action="store_true", help="draw the trigger words, not the run's sample prompts")
    grid.add_argument("--sampler", default="", metavar="NAME", help=f"{', '.join(SAMPLERS)} (default: the run's own)")


def run_grid(options: argparse.Namespace) -> int:
    """Draw the grid and print its path; what was drawn before is kept, so that it can be interrupted."""
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.images.epoch_grid import find_grid_task, make_sheet, read_choice
    from lib_lora_train.runs.images.grid_generator import draw_grid, start_txt2img

    folder = open_run_folder(options)
    choice = read_choice(
        {
            "run": folder.root.name,
            "sampler": options.sampler,
            "prompts": "triggers" if options.triggers else "samples",
            "strengths": options.strengths,
        }
    )
    task = find_grid_task(folder.root.parent, choice)
    txt2img = start_txt2img(StandaloneHost(None, None, folder.root), task, choice.sampler)
    sheet = make_sheet(task, model=txt2img.model_name, sampler=txt2img.sampler)
    total = task.total
    path = draw_grid(task, txt2img, sheet, lambda done, _: print(f"image {done} of {total}", flush=True))
    print(path)
    return 0
