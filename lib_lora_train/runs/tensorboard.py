"""TensorBoard logs of a run, under kohya's names, written from its events; and the program that shows them.

The package tensorboard is an extra: it is imported only when `tensorboard` is on.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import VALIDATION_LOSS, EpochDone, Event, Measured, Noted, Planned, Resumed, StepDone
from lib_lora_train.runs.folder import RunFolder

PORT = 6006
_START_SECONDS = 60.0
_MISSING = "needs the package tensorboard. Install it: pip install tensorboard"
_PARTS = {
    "text_encoder": "textencoder",
    "text_encoder_1": "textencoder 1",
    "text_encoder_2": "textencoder 2",
}


def tensorboard_folder(home: Path) -> Path:
    """Where the logs of all runs of an outputs folder lie, one folder each."""
    return home / "tensorboard"


def start_tensorboard(home: Path, port: int = PORT) -> subprocess.Popen[bytes]:
    """TensorBoard for all runs in `home`, on this machine only; HostError if it is not installed.

    Whoever starts it ends it, with `terminate`.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise HostError(f"TensorBoard {_MISSING}.")
    logs = tensorboard_folder(home)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "127.0.0.1"]
    return subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class TensorBoardServer:
    """At most one TensorBoard over the runs in `home`; it ends with this process."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._guard = threading.Lock()

    def address(self) -> str:
        """Where it answers, started first if it does not run; HostError if there is nothing to show, or it fails."""
        if not any(tensorboard_folder(self._home).glob("*/events.out.*")):
            raise HostError("No run has written TensorBoard logs yet. Switch tensorboard on for the next run.")
        with self._guard:
            if self._process is None or self._process.poll() is not None:
                self._port = _free_port()
                self._process = start_tensorboard(self._home, self._port)
                atexit.register(self._process.terminate)
            self._await(self._process)
        return f"http://127.0.0.1:{self._port}/"

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it listens."""
        end = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            time.sleep(0.2)
        raise HostError("TensorBoard does not start. Run `python -m tensorboard.main` in a terminal to see why.")


def _free_port() -> int:
    """TensorBoard's usual port, or any other one if that is taken."""
    for port in (PORT, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise HostError("There is no free port for TensorBoard. Close some programs.")


def log_to_tensorboard(events: Iterator[Event], folder: RunFolder, optimizer: str) -> Iterator[Event]:
    """The same events, each also logged; without the package a warning comes first and nothing is logged."""
    open_writer = _summary_writer()
    if open_writer is None:
        yield Noted("warning", "tensorboard", f"{_MISSING}, or switch it off. The run goes on without it.")
        yield from events
        return
    board = TensorBoardLogger(
        open_writer,
        tensorboard_folder(folder.root.parent) / folder.root.name,
        OPTIMIZER_CATALOG[optimizer].estimates_lr,
    )
    try:
        for event in events:
            board.log(event)
            yield event
    finally:
        board.close()


def _summary_writer() -> Callable[..., Any] | None:
    """torch's writer; None if tensorboard is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter


class TensorBoardLogger:
    """Writes events as scalars. Nothing is written before the first number.

    `open_writer` is torch's SummaryWriter; `estimates_lr` says that rates are d·lr.
    """

    def __init__(self, open_writer: Callable[..., Any], folder: Path, estimates_lr: bool) -> None:
        self._open_writer = open_writer
        self._folder = folder
        self._rates = "lr/d*lr" if estimates_lr else "lr"
        self._losses: deque[float] = deque(maxlen=1)
        self._purge: int | None = None
        self._writer: Any = None

    def log(self, event: Event) -> None:
        """Log what the event tells; most tell no numbers."""
        if isinstance(event, Planned):
            self._losses = deque(maxlen=max(1, event.steps_per_epoch))  # the mean over an epoch's length, as kohya's
        elif isinstance(event, Resumed):
            self._purge = event.step + 1  # what was logged of later steps is void
        elif isinstance(event, StepDone):
            self._losses.append(event.loss)
            rates = {f"{self._rates}/{_part(name)}": rate for name, rate in event.learning_rates.items()}
            mean = sum(self._losses) / len(self._losses)
            self._write({"loss/current": event.loss, "loss/average": mean, **rates, **_norms(event)}, event.step)
        elif isinstance(event, EpochDone):
            self._write({"loss/epoch_average": event.mean_loss}, event.epoch)
        elif isinstance(event, Measured):
            self._write({_measure(name): value for name, value in event.values.items()}, event.epoch)

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        with contextlib.suppress(OSError):  # a full disk ends the logs, not the run
            if self._writer is None:
                self._writer = self._open_writer(str(self._folder), purge_step=self._purge)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)


def _measure(name: str) -> str:
    """A measured value's name there; kohya's where it has one."""
    return "loss/validation/epoch_average" if name == VALIDATION_LOSS else f"measured/{name}"


def _norms(event: StepDone) -> dict[str, float]:
    """What `scale_weight_norms` tells of the step; nothing where it is off."""
    if event.norms is None:
        return {}
    scaled, average, largest = event.norms
    return {"max_norm/keys_scaled": scaled, "max_norm/max_key_norm": largest, "norm/avg_key_norm": average}


def _part(name: str) -> str:
    """A group's name there: `unet_up`, LoRA+'s faster matrices, are `unet plus`."""
    plain = name.removesuffix("_up")
    return _PARTS.get(plain, plain) + (" plus" if plain != name else "")
