"""A run's log: one event per line of JSON, each with its time; it survives the program."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib_lora_train.core.events import Event, to_record


def log_record(event: Event) -> dict[str, Any]:
    """The event as it stands in the log, with the time of now."""
    return {**to_record(event), "time": time.time()}


def log_line(record: dict[str, Any]) -> str:
    """One line, its end included."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The records in order; none if there is no log. Lines cut short when the machine went down are left out.

    A run that was resumed after a crash takes some steps again: what the log tells of them stands in it twice.
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
