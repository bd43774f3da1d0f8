"""What the commands that measure a past run share: its folder, and the work with its progress."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from lib_lora_train.core.errors import OutputError

if TYPE_CHECKING:
    from lib_lora_train.core.events import Event
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.folder import RunFolder

_Result = TypeVar("_Result")


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    """Add the argument that `open_run_folder` reads."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run folder: outputs/DATE-NAME")


def open_run_folder(options: argparse.Namespace) -> RunFolder:
    """The run's folder; OutputError if it is none."""
    from lib_lora_train.runs.folder import RunFolder

    folder = RunFolder(options.folder.absolute())
    if not folder.config.is_file():
        raise OutputError(f"{options.folder} is not a run folder. Give the run's folder: outputs/DATE-NAME.")
    return folder


def open_measuring_host(options: argparse.Namespace, folder: RunFolder) -> StandaloneHost:
    """Where the run's model is loaded to measure it; nothing is written there."""
    from lib_lora_train.hosts.standalone import StandaloneHost

    return StandaloneHost(None, None, folder.root, "cpu" if options.cpu else None)


def measure(work: Generator[Event, None, _Result], folder: RunFolder, stream: TextIO) -> _Result:
    """The result of the work. Its progress is shown in `stream`; what was measured goes to the run's log."""
    from lib_lora_train.cli.terminal import Terminal
    from lib_lora_train.runs.late_events import is_kept, keep_events

    terminal = Terminal(stream)
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            result: _Result = end.value
            return result
        if is_kept(event):
            keep_events(folder, event)
        terminal.show(event)
