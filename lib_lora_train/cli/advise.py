"""The command `advise`: which epoch of a past run to use, and at which strength."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.cli.settings import refuse_unknown
from lib_lora_train.core.errors import OutputError


def add_advise(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    advise = command(commands, "advise", run_advise, "Find the best epoch of a past run and its strength.")
    advise.add_argument("folder", type=Path, metavar="RUN", help="the run folder: outputs/DATE-NAME")


def run_advise(options: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Print what is measured and the advice; what was drawn before is kept, so that it can be interrupted."""
    refuse_unknown(unknown)
    from lib_lora_train.cli.terminal import Terminal
    from lib_lora_train.core.control import Control
    from lib_lora_train.core.events import Advised, StrengthTested
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.advice import advise_past_run
    from lib_lora_train.runs.event_log import EventLog, log_record
    from lib_lora_train.runs.folder import RunFolder

    folder = RunFolder(options.folder.absolute())
    if not folder.config.is_file():
        raise OutputError(f"{options.folder} is not a run folder. Give the run's folder: outputs/DATE-NAME.")
    host = StandaloneHost(None, None, folder.root, "cpu" if options.cpu else None)
    terminal, log = Terminal(sys.stdout), EventLog(folder.log)
    for event in advise_past_run(folder, host, Control()):
        if isinstance(event, (StrengthTested, Advised)):
            log.append(log_record(event))
        terminal.show(event)
    return 0
