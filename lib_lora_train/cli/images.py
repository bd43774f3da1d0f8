"""The command `images`: the training images of a past run, those whose loss stands out first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.cli.settings import refuse_unknown
from lib_lora_train.core.errors import OutputError

if TYPE_CHECKING:
    from lib_lora_train.runs.folder import RunFolder
    from lib_lora_train.runs.image_list import ImageList


def add_images(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    images = command(
        commands, "images", run_images, "List the images of a past run, those that stand out by loss first."
    )
    images.add_argument("folder", type=Path, metavar="RUN", help="the run folder: outputs/DATE-NAME")
    images.add_argument("--measure", action="store_true", help="measure every image again, with the newest LoRA file")
    images.add_argument("--json", action="store_true", help="print JSON, as over HTTP")


def run_images(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Print the list; images that the run has not measured are measured first."""
    refuse_unknown(unknown)
    from lib_lora_train.runs.folder import RunFolder
    from lib_lora_train.runs.image_list import image_values, read_images

    folder = RunFolder(options.folder.absolute())
    if not folder.config.is_file():
        raise OutputError(f"{options.folder} is not a run folder. Give the run's folder: outputs/DATE-NAME.")
    images = None if options.measure else read_images(folder)
    if images is None:
        images = _measure(folder, on_cpu=options.cpu)
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


def _measure(folder: RunFolder, *, on_cpu: bool) -> ImageList:
    from lib_lora_train.core.control import Control
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.image_losses import measure_past_run

    work = measure_past_run(folder, StandaloneHost(None, None, folder.root, "cpu" if on_cpu else None), Control())
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: ImageList = end.value
            return result
