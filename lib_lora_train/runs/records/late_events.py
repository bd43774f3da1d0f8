"""What happens to a run after its end goes where the run's own events are: log, TensorBoard and reports."""

from __future__ import annotations

from lib_lora_train.core.events import Advised, Event, ImagesRated, StrengthTested, TagsRated
from lib_lora_train.runs.records.event_log import EventLog, log_record
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.reports import refresh_reports
from lib_lora_train.runs.records.run_results import read_settings


def is_kept(event: Event) -> bool:
    """Whether an event of measuring a past run is kept; progress and waiting are not."""
    return isinstance(event, (StrengthTested, Advised, ImagesRated, TagsRated))


def keep_events(folder: RunFolder, *events: Event) -> None:
    """Add the events to the run's log and, if it has them, to its TensorBoard logs and reports. Never raises."""
    log = EventLog(folder.log)
    for event in events:
        log.append(log_record(event))
    config = read_settings(folder)
    if config.tensorboard:
        from lib_lora_train.runs.records.tensorboard import add_to_tensorboard

        add_to_tensorboard(events, folder, config.optimizer)
    refresh_reports(folder)
