"""Write a run's events as TensorBoard logs, under kohya's names, and start TensorBoard.

The package tensorboard is optional and imported only if the setting `tensorboard` is on.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from statistics import fmean
from typing import Any

from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import (
    Advised,
    EpochDone,
    Event,
    ImagesRated,
    Measured,
    Noted,
    Planned,
    Resumed,
    StepDone,
    StrengthTested,
    TagsRated,
)
from lib_lora_train.core.measures import VALIDATION_LOSS
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.outcome import Outcome, read_outcome

PORT = 6006
_START_SECONDS = 60.0
_MISSING = "needs the package tensorboard. Install it: pip install tensorboard"
_GROUP_TAGS = {
    "text_encoder": "textencoder",
    "text_encoder_1": "textencoder 1",
    "text_encoder_2": "textencoder 2",
}


def tensorboard_folder(home: Path) -> Path:
    """The folder with the logs of all runs of an outputs folder, one sub-folder per run."""
    return home / "tensorboard"


def start_tensorboard(home: Path, port: int = PORT) -> subprocess.Popen[bytes]:
    """Start TensorBoard for all runs in `home`, on localhost only; HostError if it is not installed.

    The caller must end it with `terminate`.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise HostError(f"TensorBoard {_MISSING}.")
    logs = tensorboard_folder(home)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1"]
    return subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class TensorBoardServer:
    """At most one TensorBoard for the runs in `home`; it ends with this process."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._guard = threading.Lock()

    def address(self) -> str:
        """Its URL, after starting it if necessary; HostError if there are no logs or it fails to start."""
        if not any(tensorboard_folder(self._home).glob("*/events.out.*")):
            raise HostError("No run has written TensorBoard logs yet. Turn tensorboard on for the next run.")
        with self._guard:
            if self._process is None or self._process.poll() is not None:
                self._port = _free_port()
                self._process = start_tensorboard(self._home, self._port)
                atexit.register(self._process.terminate)
            self._wait_until_ready(self._process)
        return f"http://127.0.0.1:{self._port}/"

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until its port accepts connections."""
        end = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            time.sleep(0.2)
        raise HostError("TensorBoard did not start. Run `python -m tensorboard.main` in a terminal to see why.")


def _free_port() -> int:
    """TensorBoard's default port, or a free one if that is in use."""
    for port in (PORT, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise HostError("No free port for TensorBoard. Close some programs.")


def log_to_tensorboard(events: Iterator[Event], folder: RunFolder, optimizer: str) -> Iterator[Event]:
    """The same events, each also logged; without the package only a warning first."""
    open_writer = _summary_writer()
    if open_writer is None:
        yield Noted("warning", "tensorboard", f"{_MISSING}, or turn it off. The run continues without it.")
        yield from events
        return
    logger = _logger(open_writer, folder, optimizer)
    try:
        for event in events:
            logger.log(event)
            yield event
        if outcome := read_outcome(folder):
            logger.log_outcome(outcome)
    finally:
        logger.close()


def add_to_tensorboard(events: Sequence[Event], folder: RunFolder, optimizer: str) -> None:
    """Log what was measured of a run after its end; an advice may name another best epoch. Nothing without the
    package.
    """
    if open_writer := _summary_writer():
        logger = _logger(open_writer, folder, optimizer)
        for event in events:
            logger.log(event)
        if any(isinstance(event, Advised) for event in events) and (outcome := read_outcome(folder)):
            logger.log_outcome(outcome)
        logger.close()


def _logger(open_writer: Callable[..., Any], folder: RunFolder, optimizer: str) -> TensorBoardLogger:
    place = tensorboard_folder(folder.root.parent) / folder.root.name
    return TensorBoardLogger(open_writer, place, OPTIMIZER_CATALOG[optimizer].estimates_lr)


def _summary_writer() -> Callable[..., Any] | None:
    """torch's SummaryWriter; None if the package tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter


class TensorBoardLogger:
    """Writes events as scalars. The log file is created with the first value.

    `open_writer` is torch's SummaryWriter; `estimates_lr` means that learning rates are d·lr.
    """

    def __init__(self, open_writer: Callable[..., Any], folder: Path, estimates_lr: bool) -> None:
        self._open_writer = open_writer
        self._folder = folder
        self._rates = "lr/d*lr" if estimates_lr else "lr"
        self._losses: deque[float] = deque(maxlen=1)
        self._purge: int | None = None
        self._writer: Any = None

    def log(self, event: Event) -> None:
        """Log the event's values; most kinds of events have none."""
        if isinstance(event, Planned):
            self._losses = deque(
                maxlen=max(1, event.steps_per_epoch)
            )  # the mean over one epoch's steps, as in kohya's tools
        elif isinstance(event, Resumed):
            self._purge = event.step + 1  # drop what was logged for later steps
        elif isinstance(event, StepDone):
            self._losses.append(event.loss)
            rates = {f"{self._rates}/{_group_tag(name)}": rate for name, rate in event.learning_rates.items()}
            mean = sum(self._losses) / len(self._losses)
            self._write({"loss/current": event.loss, "loss/average": mean, **rates, **_norm_values(event)}, event.step)
        elif isinstance(event, EpochDone):
            self._write({"loss/epoch_average": event.mean_loss}, event.epoch)
        elif isinstance(event, Measured):
            self._write({_measured_tag(name): value for name, value in event.values.items()}, event.epoch)
        elif isinstance(event, StrengthTested):
            self._write(_trial_values(event), event.epoch)
        elif isinstance(event, Advised):
            self._write_text("advice", [event.sentence, *event.reasons, *event.remedies], event.epoch)
        elif isinstance(event, ImagesRated):
            self._write({"images/measured": event.total, "images/standing_out": len(event.standing_out)}, event.epoch)
            self._write_text("images by loss", _sentences(event.standing_out), event.epoch)
        elif isinstance(event, TagsRated):
            counts = {f"tags/{verdict}": number for verdict, number in event.verdicts.items()}
            self._write({**counts, "tags/standing_out": len(event.standing_out)}, event.epoch)
            self._write_text("tags", _sentences(event.standing_out), event.epoch)

    def log_outcome(self, outcome: Outcome) -> None:
        """Log the settings and measures of a run for the HPARAMS tab, which puts runs side by side."""
        from torch.utils.tensorboard.summary import hparams

        def add(writer: Any) -> None:
            for summary in hparams(dict(outcome.settings), dict(outcome.measures)):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary)

        self._with_writer(add)
        self._write(outcome.measures, outcome.epoch)

    def close(self) -> None:
        """Write everything to disk."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        def add(writer: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._with_writer(add)

    def _write_text(self, name: str, paragraphs: Sequence[str], step: int) -> None:
        self._with_writer(lambda writer: writer.add_text(name, "\n\n".join(paragraphs), step))

    def _with_writer(self, write: Callable[[Any], None]) -> None:
        """Write with the log file's writer, which is opened first if necessary."""
        with contextlib.suppress(OSError):  # a full disk must not end the run
            if self._writer is None:
                self._writer = self._open_writer(str(self._folder), purge_step=self._purge)
            write(self._writer)


def _sentences(standing_out: Mapping[str, str]) -> list[str]:
    """A paragraph for each thing that stands out, which begins with its name."""
    return [f"**{PurePath(name).name}**: {text}" for name, text in standing_out.items()] or ["None stands out."]


def _measured_tag(name: str) -> str:
    """The tag for a measured value; kohya's if there is one."""
    return "loss/validation/epoch_average" if name == VALIDATION_LOSS else f"measured/{name}"


def _trial_values(trial: StrengthTested) -> dict[str, float]:
    """The means of a trial, by tags that begin with its strength."""
    values = {"likeness": fmean(trial.likeness), "roughness": trial.roughness}
    if trial.change:
        values["change"] = fmean(trial.change)
    return {f"strength {trial.strength:g}/{name}": value for name, value in values.items()}


def _norm_values(event: StepDone) -> dict[str, float]:
    """The values of `scale_weight_norms` for the step; empty if it is off."""
    if event.norms is None:
        return {}
    scaled, average, largest = event.norms
    return {"max_norm/keys_scaled": scaled, "max_norm/max_key_norm": largest, "norm/avg_key_norm": average}


def _group_tag(name: str) -> str:
    """The tag for a parameter group: `unet_up`, LoRA+'s faster matrices, is `unet plus`."""
    plain = name.removesuffix("_up")
    return _GROUP_TAGS.get(plain, plain) + (" plus" if plain != name else "")
