"""What the commands that measure a past run share: its folder, and the work with its progress."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.generators import WithResult
from lib_lora_train.core.project import PROJECT_ROOT

if TYPE_CHECKING:
    from lib_lora_train.core.events import Event
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.records.folder import RunFolder

_Result = TypeVar("_Result")
_NEWEST = 5  # runs named in an error


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    """Add the argument `folder`, for `find_run` and `open_run_folder`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run: its folder outputs/DATE-NAME, or DATE-NAME")


def find_run(given: Path) -> RunFolder:
    """The run in this folder, or of this name in `outputs`; OutputError, with the newest runs there, if it is none."""
    from lib_lora_train.runs.records.folder import RunFolder

    outputs = PROJECT_ROOT / "outputs"
    for folder in (RunFolder(given.absolute()), RunFolder(outputs / given)):
        if any(path.is_file() for path in (folder.log, folder.config, folder.identity)):
            return folder
    runs = sorted((path.parent for path in outputs.glob("*/events.jsonl")), reverse=True)
    newest = f"The newest in {outputs}: {', '.join(run.name for run in runs[:_NEWEST])}." if runs else ""
    raise OutputError(f"{given} is not a run. Give the folder of one: outputs/DATE-NAME. {newest}".rstrip())


def open_run_folder(options: argparse.Namespace) -> RunFolder:
    """The run in `options.folder`; OutputError if there is none, or if it has no settings."""
    folder = find_run(options.folder)
    if not folder.config.is_file():
        raise OutputError(f"{folder.root} has no settings: the run ended before it had read them. Choose another run.")
    return folder


def open_measuring_host(options: argparse.Namespace, folder: RunFolder) -> StandaloneHost:
    """Where the run's model is loaded to measure it; nothing is written there."""
    from lib_lora_train.hosts.standalone import StandaloneHost

    return StandaloneHost(None, None, folder.root, "cpu" if options.cpu else None)


def measure(work: Generator[Event, None, _Result], folder: RunFolder, stream: TextIO) -> _Result:
    """The result of the work. Its progress is shown in `stream`; what was measured goes to the run's log."""
    from lib_lora_train.cli.terminal import Terminal
    from lib_lora_train.runs.records.late_events import is_kept, keep_events

    terminal, events = Terminal(stream), WithResult(work)
    for event in events:
        if is_kept(event):
            keep_events(folder, event)
        terminal.show(event)
    return events.result
