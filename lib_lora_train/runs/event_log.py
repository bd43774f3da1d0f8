"""A run's log file: one event per line of JSON, with its time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.events import Event, StateChanged, to_record


def log_record(event: Event) -> dict[str, Any]:
    """The event's record for the log, with the current time."""
    return {**to_record(event), "time": time.time()}


def log_line(record: dict[str, Any]) -> str:
    """The record as one line, including the newline."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def log_events(events: Iterable[Event], log: Path) -> Iterator[Event]:
    """The same events, each also written to `log` as a line of JSON with its time; with a failure's reason last."""
    with log.open("a", encoding="utf-8") as lines:

        def write(event: Event) -> None:
            lines.write(log_line(log_record(event)))
            lines.flush()

        try:
            for event in events:
                write(event)
                yield event
        except LoraTrainError as error:
            write(StateChanged("failed", str(error)))
            raise


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The records in order, none if there is no log; skips lines cut short by a crash.

    After a crash a resumed run repeats some steps, so their records appear twice.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "kind" in record:
                yield record
