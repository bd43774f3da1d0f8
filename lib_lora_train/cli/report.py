"""The command `report`: one text about a failed run, to be attached to a bug report."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.cli.settings import refuse_unknown
from lib_lora_train.core.errors import OutputError


def add_report(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    report = command(commands, "report", run_report, "Print a report of a failed run, without names and paths.")
    report.add_argument("folder", type=Path, metavar="RUN", help="the run folder: outputs/DATE-NAME")


def run_report(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Print the report of the run in a folder; OutputError if there is no such folder."""
    refuse_unknown(unknown)
    if not options.folder.is_dir():
        raise OutputError(f"{options.folder} is not a folder. Give the run's folder: outputs/DATE-NAME.")
    from lib_lora_train.runs.folder import RunFolder
    from lib_lora_train.runs.run_report import read_report

    print(read_report(RunFolder(options.folder.absolute()), "command line"), end="")
    return 0
