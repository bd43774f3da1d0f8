"""The command `tags`: what each tag of a past run became in its LoRA."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.cli.settings import refuse_unknown
from lib_lora_train.core.errors import OutputError

if TYPE_CHECKING:
    from lib_lora_train.runs.folder import RunFolder
    from lib_lora_train.runs.tag_list import TagList


def add_tags(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    tags = command(commands, "tags", run_tags, "Report what each tag of a past run became in its LoRA.")
    tags.add_argument("folder", type=Path, metavar="RUN", help="the run folder: outputs/DATE-NAME")
    tags.add_argument("--measure", action="store_true", help="measure the tags again, with the newest LoRA file")
    tags.add_argument("--tag", action="append", default=[], metavar="TAG", help="draw this tag too, if it is rare")
    tags.add_argument("--json", action="store_true", help="print JSON, as over HTTP")


def run_tags(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Print the report; tags that the run has not measured are measured first."""
    refuse_unknown(unknown)
    from lib_lora_train.runs.folder import RunFolder
    from lib_lora_train.runs.tag_list import read_tags, tag_values

    folder = RunFolder(options.folder.absolute())
    if not folder.config.is_file():
        raise OutputError(f"{options.folder} is not a run folder. Give the run's folder: outputs/DATE-NAME.")
    tags = None if options.measure or options.tag else read_tags(folder)
    if tags is None:
        tags = _measure(folder, options.tag, on_cpu=options.cpu)
    values = tag_values(tags)
    if options.json:
        print(json.dumps({"epoch": tags.epoch, "tags": values}, indent=1, ensure_ascii=False))
        return 0
    for one in values:
        mark = "!" if one["stands_out"] else " "
        text = " ".join(filter(None, (one["sentence"], one["advice"])))
        print(f"{one['images']:5} of {one['total']:<5} {mark}{one['tag']}: {text}")
    return 0


def _measure(folder: RunFolder, also: Sequence[str], *, on_cpu: bool) -> TagList:
    from lib_lora_train.cli.terminal import Terminal
    from lib_lora_train.core.control import Control
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.tag_report import measure_tags

    host = StandaloneHost(None, None, folder.root, "cpu" if on_cpu else None)
    work, terminal = measure_tags(folder, host, Control(), also), Terminal(sys.stderr)
    while True:
        try:
            terminal.show(next(work))
        except StopIteration as end:
            result: TagList = end.value
            return result
