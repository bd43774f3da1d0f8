"""Measuring a past run in a background task, with its progress in the page and a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from lib_lora_train.core.background_task import BackgroundTask
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import ModelUnavailableError
from lib_lora_train.core.events import Event, PhaseStarted, Progress
from lib_lora_train.core.phases import PHASE_TITLES
from lib_lora_train.runs.records.late_events import is_kept


def measure_in(
    task: BackgroundTask,
    work: Callable[[Control], Iterator[Event]],
    show: Callable[[Event], None],
    keep: Callable[[Event], None],
) -> None:
    """Do all of the work, or as much as there is before the task is stopped.

    `show` is called with each event, `keep` with those that belong into the log of the run.
    Errors of the work are raised, but for a model that is unavailable once the task is stopped.
    """
    control = Control()
    task.start_phase(PHASE_TITLES["load"], 0)
    try:
        for event in work(control):
            show(event)
            if is_kept(event):
                keep(event)
            if task.is_stopped():
                control.stop()
    except RunStoppedError:
        pass
    except ModelUnavailableError:
        if not task.is_stopped():
            raise


def progress_in(task: BackgroundTask, labels: Mapping[str, str]) -> Callable[[Event], None]:
    """Shows phases and how much of them is done. `labels` name the units of those that are counted."""
    return partial(_show_progress, task, labels)


def _show_progress(task: BackgroundTask, labels: Mapping[str, str], event: Event) -> None:
    if isinstance(event, PhaseStarted):
        task.start_phase(labels.get(event.phase) or PHASE_TITLES[event.phase], event.total)
    elif isinstance(event, Progress):
        task.report(event.done)
