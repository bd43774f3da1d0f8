"""The command `tags`: what each tag of a past run became in its LoRA."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from lib_lora_train.cli.past_run import add_run_folder, measure, open_measuring_host, open_run_folder
from lib_lora_train.core.control import Control


def add_tags(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    tags = command(commands, "tags", run_tags, "Report what each tag of a past run became in its LoRA.")
    add_run_folder(tags)
    tags.add_argument("--measure", action="store_true", help="measure the tags again, with the newest LoRA file")
    tags.add_argument("--tag", action="append", default=[], metavar="TAG", help="draw this tag too, if it is rare")
    tags.add_argument("--json", action="store_true", help="print JSON, as over HTTP")


def run_tags(options: argparse.Namespace) -> int:
    """Print the report; tags that the run has not measured are measured first."""
    from lib_lora_train.runs.measures.tag_list import read_tags, tag_values

    folder = open_run_folder(options)
    tags = None if options.measure or options.tag else read_tags(folder)
    if tags is None:
        from lib_lora_train.runs.measures.tag_report import measure_tags  # loads PyTorch

        work = measure_tags(folder, open_measuring_host(options, folder), Control(), options.tag)
        tags = measure(work, folder, sys.stderr)
    values = tag_values(tags)
    if options.json:
        print(json.dumps({"epoch": tags.epoch, "tags": values}, indent=1, ensure_ascii=False))
        return 0
    for one in values:
        mark = "!" if one["stands_out"] else " "
        text = " ".join(filter(None, (one["sentence"], one["advice"])))
        print(f"{one['images']:5} of {one['total']:<5} {mark}{one['tag']}: {text}")
    return 0
