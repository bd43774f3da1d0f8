"""The command `advise`: which epoch of a past run to use, and at which strength."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from lib_lora_train.cli.past_run import add_run_folder, measure, open_measuring_host, open_run_folder
from lib_lora_train.core.control import Control


def add_advise(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command."""
    advise = command(commands, "advise", run_advise, "Find the best epoch of a past run and its strength.")
    add_run_folder(advise)


def run_advise(options: argparse.Namespace) -> int:
    """Print what is measured and the advice; what was drawn before is kept, so that it can be interrupted."""
    folder = open_run_folder(options)
    from lib_lora_train.runs.measures.advice import advise_past_run  # loads PyTorch

    measure(advise_past_run(folder, open_measuring_host(options, folder), Control()), folder, sys.stdout)
    return 0
