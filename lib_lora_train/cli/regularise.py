"""The command `regularise`: draw regularisation images with the model that will be trained."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib_lora_train.cli.flags import add_setting_flags, preset_help
from lib_lora_train.cli.settings import read_cli_config
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.generators import WithResult


def add_regularise(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = command(
        commands, "regularise", run_regularise, "Draw regularisation images with the model that will be trained."
    )
    parser.usage = "lora-train regularise [CONFIG.toml] --to DIR [--per-image N | --total N] [--prompts class|captions]"
    parser.add_argument("configs", nargs="*", metavar="CONFIG.toml", help="settings of the run, which flags override")
    parser.add_argument("--preset", action="append", default=[], metavar="NAME", help=preset_help())
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder for the images of all models")
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--per-image", type=int, default=1, metavar="N", help="images per training image (default: 1)")
    count.add_argument("--total", type=int, default=0, metavar="N", help="images in all")
    parser.add_argument(
        "--prompts",
        choices=("class", "captions"),
        default="class",
        help="draw the class word, or each caption with the class word in the trigger's place (default: class)",
    )
    add_setting_flags(parser)


def run_regularise(options: argparse.Namespace) -> int:
    """Draw what is missing, and print the folders to add as regularisation."""
    if options.per_image < 1 or options.total < 0:
        raise LoraTrainError("--per-image and --total must be at least 1.")
    config = read_cli_config(options)
    from lib_lora_train.cli.terminal import Terminal
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.images.regularisation_images import draw_regularisation_images, wanted_images
    from lib_lora_train.runs.planning import plan_run

    folder = options.to.absolute()
    plan = plan_run(config).plan
    wanted = wanted_images(plan, config, prompts=options.prompts, per_image=options.per_image, total=options.total)
    host = StandaloneHost(None, None, folder, "cpu" if options.cpu else None)
    work = draw_regularisation_images(wanted, config, host, folder=folder, prompts=options.prompts, control=Control())
    terminal, events = Terminal(sys.stderr), WithResult(work)
    for event in events:
        terminal.show(event)
    terminal.close()
    found = events.result
    print(f"{found.drawn} drawn, {found.kept} already there. Add to the settings:")
    for path in found.folders:
        print(f'\n[[concepts]]\nfolder = "{path.as_posix()}"\nis_regularisation = true')
    return 0
