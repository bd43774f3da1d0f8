"""The command `report`: one text about a failed run, to be attached to a bug report."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from lib_lora_train.cli.past_run import add_run_folder, find_run


def add_report(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    report = command(commands, "report", run_report, "Print a report of a failed run, without names and paths.")
    add_run_folder(report)


def run_report(options: argparse.Namespace) -> int:
    """Print the report of the run in a folder; OutputError if there is no such run."""
    from lib_lora_train.runs.records.run_report import read_report

    print(read_report(find_run(options.folder), "command line"), end="")
    return 0
