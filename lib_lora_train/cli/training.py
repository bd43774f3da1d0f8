"""Training on the command line: one run, or several with one model, shown on the terminal."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError, OutputError
from lib_lora_train.core.project import PROJECT_ROOT
from lib_lora_train.core.wording import count

if TYPE_CHECKING:
    from lib_lora_train.hosts.standalone import StandaloneHost
    from lib_lora_train.runs.records.folder import RunFolder
    from lib_lora_train.runs.records.past_runs import ResumePoint

EXIT_INTERRUPTED = 130


def open_host(options: argparse.Namespace, lora_dir: Path | None = None) -> StandaloneHost:
    """The host of this command's runs, which share its model as long as their settings name the same one."""
    from lib_lora_train.hosts.standalone import StandaloneHost

    lora_dir = lora_dir or output_folder(options) / "models" / "Lora"
    return StandaloneHost(None, None, lora_dir, "cpu" if options.cpu else None)


def output_folder(options: argparse.Namespace) -> Path:
    """The folder for all files of the command."""
    folder: Path = getattr(options, "out", None) or PROJECT_ROOT
    return folder.absolute()


def train_all(options: argparse.Namespace, configs: Sequence[TrainConfig]) -> int:
    """Train one after the other; a failure is printed and does not stop the next run, Ctrl-C ends all."""
    host = open_host(options)
    failed = []
    for number, config in enumerate(configs, start=1):
        print(f"Run {number} of {len(configs)}: {config.output_name}")
        try:
            if not train_run(options, config, host=host):
                return EXIT_INTERRUPTED
        except LoraTrainError as error:
            failed.append(config.output_name)
            print(f"Error: {error}", file=sys.stderr)
    if failed:
        raise LoraTrainError(f"{len(failed)} of {count(len(configs), 'run')} failed: {', '.join(failed)}.")
    return 0


def train_run(
    options: argparse.Namespace,
    config: TrainConfig,
    resume_point: ResumePoint | None = None,
    *,
    host: StandaloneHost | None = None,
    folder: RunFolder | None = None,
) -> bool:
    """Train a new run, in `folder` if it is given, or resume one; False if it was stopped."""
    from lib_lora_train.cli.show_run import show_run
    from lib_lora_train.core.control import Control
    from lib_lora_train.models.model_identity import identity_from_values
    from lib_lora_train.runs.records.event_log import log_events
    from lib_lora_train.runs.records.folder import new_run_folder
    from lib_lora_train.runs.records.reports import refresh_reports
    from lib_lora_train.runs.trainer import RunOptions, run_training

    config = resume_point.config if resume_point else config
    host = host or open_host(options)
    if resume_point:
        folder = resume_point.folder
    folder = folder or new_run_folder(output_folder(options) / "outputs", config.output_name)
    control = Control()
    run_options = RunOptions(
        model=identity_from_values(resume_point.model) if resume_point and resume_point.model else None,
        any_model=getattr(options, "other_model", False),
        lora_dir=host.lora_dir if resume_point and getattr(options, "out", None) else None,
    )
    state = resume_point.state if resume_point else None
    events = run_training(config, host, folder=folder, control=control, state=state, options=run_options)
    try:
        show_run(log_events(events, folder.log), control)
    except OutputError as error:
        command = f"python launch.py resume {shlex.quote(str(folder.root))}"
        raise OutputError(f"{error} Then continue with: {command}") from error
    finally:
        refresh_reports(folder)
    return not control.is_stopped
