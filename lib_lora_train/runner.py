"""The job's home: a thread that outlives every page, what it has told so far, and the files it made.

One `JobRunner` per process. The page, the REST routes and the command line only ever ask it; the
thread runs `jobs.run_job` and appends each event to memory and to `events.jsonl` in the run's folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from lib_lora_train.config import TrainConfig, config_values
from lib_lora_train.errors import HostError, LoraTrainError
from lib_lora_train.events import (
    Event,
    GridDrawn,
    Planned,
    SampleDrawn,
    StateChanged,
    StepDone,
    to_record,
)
from lib_lora_train.jobs import run_job
from lib_lora_train.progress import Eta
from lib_lora_train.run_folder import RunFolder, new_run_folder
from lib_lora_train.train.control import Control

log = logging.getLogger("lora_train")

_LIVE = ("running", "paused", "waiting", "stopping")


@dataclasses.dataclass
class _Run:
    """What is known of one run; written by its thread, read under the runner's lock."""

    folder: RunFolder
    config: TrainConfig
    control: Control
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    losses: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    rates: dict[str, list[tuple[int, float]]] = dataclasses.field(default_factory=dict)
    step_seconds: float = 0.0
    files: list[Path] = dataclasses.field(default_factory=list)
    state: str = "running"
    message: str = ""
    eta: Eta = dataclasses.field(default_factory=Eta)
    epoch: int = 0
    plan: Planned | None = None


class JobRunner:
    """Runs one job at a time in a thread of its own and remembers what it told.

    `home` is where run folders are made; `make_events` is replaced in tests.
    """

    def __init__(self, host: Any, home: Path, *, make_events: Callable[..., Iterator[Event]] = run_job) -> None:
        self.host = host
        self.home = home
        self._make_events = make_events
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._thread: threading.Thread | None = None

    # --- commands ------------------------------------------------------------------------------
    def start(self, config: TrainConfig) -> str:
        """Begin a run and return its id; HostError while another one is at work."""
        with self._lock:
            if self._run and self._run.state in _LIVE:
                raise HostError("A training is already running. Stop it or wait for its end, then start the next one.")
            folder = new_run_folder(self.home, config.output_name)
            run = self._run = _Run(folder, config, Control())
            self._thread = threading.Thread(target=self._work, args=(run,), name="lora-train", daemon=True)
            self._thread.start()
        return folder.root.name

    def pause(self) -> None:
        """Hold after the current step; the graphics card is free meanwhile."""
        self._require_run().control.pause()

    def resume(self) -> None:
        """Go on after a pause."""
        self._require_run().control.resume()

    def stop(self) -> None:
        """End after the current step and keep what was learnt as a file."""
        self._require_run().control.stop()

    def save_now(self) -> None:
        """Write a LoRA file after the current step."""
        self._require_run().control.save_now()

    def sample_now(self) -> None:
        """Draw the sample prompts after the current step."""
        self._require_run().control.sample_now()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until the current run has ended."""
        if self._thread:
            self._thread.join(timeout_seconds)

    # --- questions -----------------------------------------------------------------------------
    def status(self, since: int = 0) -> dict[str, Any]:
        """The state in numbers, and the events from number `since` on."""
        with self._lock:
            run = self._run
            if run is None:
                return {"run": None, "state": "idle", "message": "", "events": [], "next": 0, "config": {}}
            return {
                "run": run.folder.root.name,
                "folder": str(run.folder.root),
                "state": run.state,
                "message": run.message,
                "phase": run.eta.phase,
                "done": run.eta.done,
                "total": run.eta.total,
                "eta_seconds": run.eta.remaining_seconds(),
                "step": run.losses[-1][0] if run.losses else 0,
                "step_seconds": run.step_seconds,
                "total_steps": run.plan.total_steps if run.plan else 0,
                "epoch": run.epoch,
                "epochs": run.plan.epochs if run.plan else 0,
                "events": [event for event in run.events[since:] if event["kind"] not in ("StepDone", "Progress")],
                "next": len(run.events),
                "config": config_values(run.config),
            }

    def loss_curve(self, max_points: int = 1000) -> list[tuple[int, float]]:
        """(step, mean loss) pairs, at most `max_points`, each the mean over an equal stretch of steps."""
        with self._lock:
            losses = list(self._run.losses) if self._run else []
        return downsample(losses, max_points)

    def rate_curves(self, max_points: int = 1000) -> dict[str, list[tuple[int, float]]]:
        """By parameter group, (step, effective learning rate) pairs, thinned like the loss curve."""
        with self._lock:
            rates = {group: list(points) for group, points in self._run.rates.items()} if self._run else {}
        return {group: downsample(points, max_points) for group, points in rates.items()}

    @property
    def files(self) -> tuple[Path, ...]:
        """Pictures of the current run that the page may show."""
        with self._lock:
            return tuple(self._run.files) if self._run else ()

    def _require_run(self) -> _Run:
        with self._lock:
            if self._run is None or self._run.state not in _LIVE:
                raise HostError("No training is running.")
            return self._run

    # --- the thread ----------------------------------------------------------------------------
    def _work(self, run: _Run) -> None:
        with run.folder.log.open("a", encoding="utf-8") as lines:
            try:
                for event in self._make_events(run.config, self.host, folder=run.folder, control=run.control):
                    self._take(run, event, lines)
            except LoraTrainError as error:
                self._take(run, StateChanged("failed", str(error)), lines)
            except Exception as error:  # the job's edge: whatever happens must reach the page, not only the console
                log.exception("training failed")
                run.folder.crash_report.write_text(traceback.format_exc(), encoding="utf-8")
                reason = f"{type(error).__name__}: {error}. Details: {run.folder.crash_report}"
                self._take(run, StateChanged("failed", reason), lines)

    def _take(self, run: _Run, event: Event, lines: TextIO) -> None:
        record = {**to_record(event), "time": time.time()}
        lines.write(json.dumps(record, ensure_ascii=False) + "\n")
        lines.flush()
        if isinstance(event, StateChanged) and event.message:
            log.log(logging.ERROR if event.state == "failed" else logging.INFO, event.message)
        with self._lock:
            run.events.append(record)
            run.eta.take(event)
            if isinstance(event, StepDone):
                run.losses.append((event.step, event.loss))
                run.step_seconds = event.seconds
                for group, rate in event.learning_rates.items():
                    run.rates.setdefault(group, []).append((event.step, rate))
                run.epoch = event.epoch
            elif isinstance(event, (SampleDrawn, GridDrawn)):
                run.files.append(Path(event.path))
            elif isinstance(event, Planned):
                run.plan = event
            elif isinstance(event, StateChanged):
                run.state, run.message = event.state, event.message


def downsample(points: list[tuple[int, float]], max_points: int) -> list[tuple[int, float]]:
    """At most `max_points` points: means over equal stretches, each at the last step of its stretch."""
    if len(points) <= max_points:
        return points
    edges = [len(points) * i // max_points for i in range(max_points + 1)]
    stretches = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(stretch[-1][0], sum(loss for _, loss in stretch) / len(stretch)) for stretch in stretches]
