"""The command `images`: the training images of a past run, those whose loss stands out first."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from lib_lora_train.cli.past_run import add_run_folder, measure, open_measuring_host, open_run_folder
from lib_lora_train.core.control import Control


def add_images(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    images = command(
        commands, "images", run_images, "List the images of a past run, those that stand out by loss first."
    )
    add_run_folder(images)
    images.add_argument("--measure", action="store_true", help="measure every image again, with the newest LoRA file")
    images.add_argument("--json", action="store_true", help="print JSON, as over HTTP")


def run_images(options: argparse.Namespace) -> int:
    """Print the list; images that the run has not measured are measured first."""
    from lib_lora_train.runs.measures.image_list import image_values, read_images

    folder = open_run_folder(options)
    images = None if options.measure else read_images(folder)
    if images is None:
        from lib_lora_train.runs.measures.image_losses import measure_past_run  # loads PyTorch

        work = measure_past_run(folder, open_measuring_host(options, folder), Control())
        images = measure(work, folder, sys.stderr)
    values = image_values(images)
    if options.json:
        print(json.dumps({"epoch": images.epoch, "images": values}, indent=1, ensure_ascii=False))
        return 0
    print(f"{'loss':>8}  {'expected':>8}  {'excess':>7}  image")
    for one in values:
        mark = "!" if one["stands_out"] else " "
        print(f"{one['loss']:8.4f}  {one['expected']:8.4f}  {one['excess']:+7.0%} {mark}{one['path']}")
        if one["stands_out"]:
            print(f"{'':29}{one['sentence']}")
    return 0
