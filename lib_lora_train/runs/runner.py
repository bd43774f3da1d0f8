"""Runs training in a thread that outlives every page, collects its events, and works through the queue.

There is one `Runner` per process, used by the page and the REST routes. Its thread runs `trainer.run_training` and
appends each event to memory and to `events.jsonl` in the run's folder.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib_lora_train.config.family_support import conversions_for, form_of
from lib_lora_train.config.train_config import TrainConfig, config_values
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import HostError, LoraTrainError
from lib_lora_train.core.events import ACTIVE_STATES, Event, StateChanged, StepDone
from lib_lora_train.models.model_identity import identity_from_values
from lib_lora_train.runs.checks.model_check import read_expected_model
from lib_lora_train.runs.checks.write_places import WritePlaces, saving_places
from lib_lora_train.runs.current_run import CurrentRun
from lib_lora_train.runs.planning import RunPlan, plan_run
from lib_lora_train.runs.queue import QueuedRun, RunQueue, new_entry
from lib_lora_train.runs.records.crash_report import describe_crash
from lib_lora_train.runs.records.downsampling import downsample
from lib_lora_train.runs.records.event_log import EventLog, log_record, log_warning
from lib_lora_train.runs.records.folder import RunFolder, new_run_folder, write_json
from lib_lora_train.runs.records.gpu_memory import read_gpu_memory
from lib_lora_train.runs.records.late_events import keep_events
from lib_lora_train.runs.records.past_runs import ResumePoint, find_resume_point
from lib_lora_train.runs.records.reports import refresh_reports
from lib_lora_train.runs.trainer import RunOptions, run_training

log = logging.getLogger("lora_train")


class Runner:
    """Trains one run at a time in a thread, keeps its events, and then starts the next one from the queue.

    `home` holds the run folders and the queue's file; `make_events` is replaced in tests.
    """

    def __init__(self, host: Any, home: Path, *, make_events: Callable[..., Iterator[Event]] = run_training) -> None:
        self.host = host
        self.home = home
        self.queue = RunQueue(home / "queue.json")
        self._make_events = make_events
        self._dequeued: set[str] = set()  # started entries of the queue, in case one cannot be removed from it
        self._lock = threading.Lock()
        self._run: CurrentRun | None = None
        self._thread: threading.Thread | None = None

    # --- commands ------------------------------------------------------------------------------
    def start(self, config: TrainConfig, run_plan: RunPlan | None = None) -> str:
        """Start a run and return its id; HostError while another one is active. `run_plan` avoids planning it again."""
        with self._lock:
            self._require_idle()
            return self._start_thread(self._new_run(config, run_plan))

    def resume_run(self, run: str, *, more_epochs: int = 0, step: int | None = None, any_model: bool = False) -> str:
        """Resume an interrupted run by its id, or extend a finished one; returns the id.

        `any_model`: also on another model than it was started on. HostError while another run is active, TrainingError
        or ConfigError if it cannot be resumed.
        """
        resume_point = find_resume_point(self._folder(run), more_epochs=more_epochs, step=step)
        with self._lock:
            self._require_idle()
            return self._start_thread(_resumed(resume_point, any_model=any_model))

    def accept_any_model(self) -> None:
        """Let the active run, which waits for its model, continue on the one that is loaded."""
        self._require_run().control.accept_any_model()

    def enqueue(self, config: TrainConfig) -> str:
        """Add a run to the queue and return the entry's id.

        It starts when the active run and those before it have ended. If no run is active, it waits for one to start.
        """
        entry = self._entry(config)
        self.queue.add_all((entry,))
        return entry.id

    def enqueue_all(self, runs: Sequence[tuple[TrainConfig, Mapping[str, Any]]]) -> None:
        """Add runs to the queue, each with the origin that its folder will have."""
        self.queue.add_all([self._entry(config, origin) for config, origin in runs])

    def _entry(self, config: TrainConfig, origin: Mapping[str, Any] | None = None) -> QueuedRun:
        model = read_expected_model(self.host, config)
        return new_entry(config, model=model.values() if model else None, origin=origin)

    def enqueue_resume(self, run: str, *, more_epochs: int = 0) -> str:
        """Add an interrupted or finished run to the queue, to be resumed or extended; errors as in `resume_run`."""
        resume_point = find_resume_point(self._folder(run), more_epochs=more_epochs)
        return self.queue.add(resume_point.config, run=resume_point.folder.root.name, more_epochs=more_epochs)

    def start_queue(self) -> str:
        """Start the first queued run that can start and return its id; the others follow.

        HostError if there is none, or if a run is active.
        """
        with self._lock:
            self._require_idle()
        queued = self._next_queued()
        if queued is None:
            problems = [f"{entry.name}: {entry.problem}" for entry in self.queue.entries() if entry.problem]
            raise HostError("\n".join(problems) or "The queue is empty. Add a run first.")
        with self._lock:
            self._require_idle()
            return self._start_thread(self._dequeue(*queued))

    def pause(self) -> None:
        """Pause after the current step; the GPU is free meanwhile."""
        self._require_run().control.pause()

    def resume(self) -> None:
        """Continue after a pause."""
        self._require_run().control.resume()

    def stop(self) -> None:
        """Stop after the current step, of training or sampling, and save the LoRA; queued runs stay in the queue."""
        self._require_run().control.stop()

    def drop(self) -> None:
        """Stop after the current step without saving it; queued runs stay in the queue."""
        self._require_run().control.drop()

    def save_now(self) -> None:
        """Save a LoRA file after the current step."""
        self._require_run().control.save_now()

    def sample_now(self) -> None:
        """Generate the sample prompts after the current step."""
        self._require_run().control.sample_now()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until the current run and the queued runs after it have ended."""
        if self._thread:
            self._thread.join(timeout_seconds)

    # --- status --------------------------------------------------------------------------
    def status(self, since: int = 0) -> dict[str, Any]:
        """The state, the events from index `since` on, and the queue."""
        queue = self.queued_runs()
        with self._lock:
            run = self._run
            if run is None:
                idle: dict[str, Any] = {
                    "run": None,
                    "state": "idle",
                    "message": "",
                    "events": [],
                    "next": 0,
                    "config": {},
                }
                return {**idle, "queue": queue, "queue_problem": self.queue.problem}
            return {
                "run": run.folder.root.name,
                "folder": str(run.folder.root),
                "state": "stopping" if run.control.is_stopped and run.state in ACTIVE_STATES else run.state,
                "message": run.message,
                "offer": run.offer,
                "phase": run.eta.phase,
                "done": run.eta.done,
                "total": run.eta.total,
                "share": run.eta.share,
                "progress": run.eta.text,
                "eta_seconds": run.eta.remaining_seconds(),
                "step": run.losses[-1][0] if run.losses else 0,
                "step_seconds": run.step_seconds,
                "layer_norms": run.layer_norms,
                "pending": [name for name in run.control.pending if (name, run.state) != ("pause", "paused")],
                "total_steps": run.plan.total_steps if run.plan else 0,
                "epoch": run.epoch,
                "epochs": run.plan.epochs if run.plan else 0,
                "events": [event for event in run.events[since:] if event["kind"] not in ("StepDone", "Progress")],
                "next": len(run.events),
                "config": config_values(run.config),
                "convert_to": self._conversions(run.config),
                "queue": queue,
                "queue_problem": self.queue.problem,
            }

    def _conversions(self, config: TrainConfig) -> list[str]:
        """What the page offers to convert the run's files to; nothing if the run saves what the webui reads."""
        if config.files_for_webui:
            return []
        return list(conversions_for(self.host.name if self.host else "", form_of(config)))

    def queued_runs(self) -> list[dict[str, Any]]:
        """The queue, next run first: `id`, `name` of the files, the id of the `run` to resume ("": a new one) and the
        `problem` for which it could not start.
        """
        return [
            {"id": entry.id, "name": entry.name, "run": entry.run, "problem": entry.problem}
            for entry in self.queue.entries()
        ]

    def places(self) -> WritePlaces | None:
        """Where new runs will be written; None without a host."""
        return saving_places(self.home, self.host) if self.host else None

    @property
    def active_run(self) -> str:
        """The id of the active run, "" if there is none."""
        with self._lock:
            return self._run.folder.root.name if self._run and self._run.state in ACTIVE_STATES else ""

    def loss_curve(self, max_points: int = 1000) -> list[tuple[int, float]]:
        """(step, mean loss) pairs, at most `max_points`, each the mean of an equal number of steps."""
        with self._lock:
            return downsample(list(self._run.losses) if self._run else [], max_points)

    def rate_curves(self, max_points: int = 1000) -> dict[str, list[tuple[int, float]]]:
        """By parameter group, (step, effective learning rate) pairs, downsampled like the loss curve."""
        with self._lock:
            rates = {group: list(points) for group, points in self._run.rates.items()} if self._run else {}
        return {group: downsample(points, max_points) for group, points in rates.items()}

    def norm_curve(self, max_points: int = 1000) -> list[tuple[int, float]]:
        """(step, gradient norm before clipping) pairs, downsampled like the loss curve."""
        with self._lock:
            return downsample(list(self._run.norms) if self._run else [], max_points)

    def memory_curve(self, max_points: int = 1000) -> list[tuple[int, float]]:
        """(step, GiB of GPU memory in use by all programs) pairs, downsampled like the loss curve."""
        with self._lock:
            return downsample(list(self._run.memory.points) if self._run else [], max_points)

    def memory(self) -> dict[str, float] | None:
        """GPU memory in use by all programs and in total, in GiB; None if CUDA is not in use."""
        return read_gpu_memory()

    def lora_paths(self) -> tuple[Path, ...]:
        """The current run's LoRA files on record, which may be missing on disk."""
        with self._lock:
            return tuple(map(Path, self._run.loras)) if self._run else ()

    def note(self, run: str, *events: Event) -> None:
        """Add what was done to the files of a run to its log, and to the current run if that is the one."""
        keep_events(self._folder(run), *events)
        with self._lock:
            if self._run and self._run.folder.root.name == run:
                for event in events:
                    self._run.record(event, log_record(event))

    def _require_run(self) -> CurrentRun:
        with self._lock:
            if self._run is None or self._run.state not in ACTIVE_STATES:
                raise HostError("No training is running.")
            return self._run

    def _require_idle(self) -> None:
        if self._run and self._run.state in ACTIVE_STATES:
            raise HostError("A training is already running. Stop it or wait until it ends, then start the next one.")

    # --- the thread ----------------------------------------------------------------------------
    def _new_run(self, config: TrainConfig, run_plan: RunPlan | None = None) -> CurrentRun:
        return CurrentRun(new_run_folder(self.home, config.output_name), config, _control(), run_plan)

    def _start_thread(self, run: CurrentRun) -> str:
        self._run = run
        self._thread = threading.Thread(target=self._run_all, args=(run,), name="lora-train", daemon=True)
        self._thread.start()
        return run.folder.root.name

    def _run_all(self, first: CurrentRun) -> None:
        """Train the run, then the queued runs in order; a failure ends only its own run."""
        run: CurrentRun | None = first
        while run:
            self._run_one(run)
            run = self._follow(run)

    def _follow(self, ended: CurrentRun) -> CurrentRun | None:
        """The next queued run, made the current one; None if there is none, or if the ended run was stopped."""
        queued = None if ended.state == "stopped" else self._next_queued()
        with self._lock:
            if queued is None or self._run is not ended:  # another run was started in the meantime
                return None
            self._run = self._dequeue(*queued)
            return self._run

    def _next_queued(self) -> tuple[QueuedRun, CurrentRun] | None:
        """The next queued run that can start; the queue keeps the others, each with its reason."""
        for entry in self.queue.entries():
            if entry.id in self._dequeued:
                continue
            try:
                return entry, self._run_from(entry)
            except (LoraTrainError, OSError) as error:
                log.error("the queued run %s cannot start: %s", entry.name, error)
                with contextlib.suppress(
                    LoraTrainError
                ):  # removed, or the disk is full: then the reason is logged only
                    self.queue.set_problem(entry.id, str(error))
        return None

    def _dequeue(self, entry: QueuedRun, run: CurrentRun) -> CurrentRun:
        """The run, removed from the queue; its folder exists by now, so that it is never lost."""
        self._dequeued.add(entry.id)
        try:
            self.queue.remove(entry.id)
        except LoraTrainError as error:  # the disk is full, or the user has removed it at this moment
            log.error("%s", error)
        return run

    def _run_from(self, entry: QueuedRun) -> CurrentRun:
        """A queued run, ready to start; LoraTrainError if it cannot."""
        if entry.run:
            return _resumed(find_resume_point(self._folder(entry.run), more_epochs=entry.more_epochs))
        config = entry.config()
        if config.concepts:
            plan_run(
                config, self.places()
            )  # a folder that is away keeps the run in the queue; the run itself scans it again
        run = self._new_run(config)
        if entry.origin:
            write_json(run.folder.origin, entry.origin)
        if entry.model:
            run.options = RunOptions(model=identity_from_values(entry.model))
        return run

    def _folder(self, run: str) -> RunFolder:
        return RunFolder(self.home / Path(run).name)

    def _run_one(self, run: CurrentRun) -> None:
        """Train one run. Whatever happens, its state is an ending when this returns."""
        extras = {
            name: value
            for name, value in (("run_plan", run.run_plan), ("state", run.from_state), ("options", run.options))
            if value is not None
        }
        event_log = EventLog(run.folder.log)
        try:
            for event in self._make_events(run.config, self.host, folder=run.folder, control=run.control, **extras):
                self._handle(run, event, event_log)
        except LoraTrainError as error:
            self._handle(run, StateChanged("failed", str(error), error.offer), event_log)
        except Exception as error:  # the edge of the run: any error must reach the page, not only the console
            log.exception("training failed")
            self._handle(run, StateChanged("failed", describe_crash(error, run.folder)), event_log)
        if run.state in ACTIVE_STATES:
            self._handle(run, StateChanged("stopped" if run.control.is_stopped else "finished"), event_log)
        refresh_reports(run.folder)

    def _handle(self, run: CurrentRun, event: Event, event_log: EventLog) -> None:
        """Store the event in memory, then in the log, which may be on a full disk."""
        record = log_record(event)
        if isinstance(event, StepDone):
            run.memory.measure(event.step)
        if isinstance(event, StateChanged) and event.message:
            log.log(logging.ERROR if event.state == "failed" else logging.INFO, event.message)
        with self._lock:
            run.record(event, record)
            run.eta.handle(event)
        reason = event_log.append(record)
        if reason:
            self._handle(run, log_warning(run.folder.log, reason), event_log)


def _control() -> Control:
    """Requests from the page, where somebody can free disk space and press Resume."""
    return Control(is_attended=True)


def _resumed(resume_point: ResumePoint, *, any_model: bool = False) -> CurrentRun:
    run = CurrentRun(resume_point.folder, resume_point.config, _control(), from_state=resume_point.state)
    model = identity_from_values(resume_point.model) if resume_point.model else None
    if model or any_model:
        run.options = RunOptions(model=model, any_model=any_model)
    run.load_log()
    return run
