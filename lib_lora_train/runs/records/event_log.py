"""A run's log file: one event per line of JSON, with its time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.core.events import Event, Noted, StateChanged, fits, to_record
from lib_lora_train.core.writable import failed_write_advice
from lib_lora_train.runs.records.crash_report import describe_crash
from lib_lora_train.runs.records.folder import RunFolder


def log_record(event: Event) -> dict[str, Any]:
    """The event's record for the log, with the current time."""
    return {**to_record(event), "time": time.time()}


def log_line(record: dict[str, Any]) -> str:
    """The record as one line, including the newline.

    Bytes of file names that are not UTF-8 are JSON escapes, so the line can always be encoded.
    """
    text = json.dumps(record, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


class EventLog:
    """Appends records to a log file and never raises, because no run may end for its log.

    What cannot be written (the disk is full, the folder is gone) is kept and written before the next record.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending = b""
        self._is_failing = False
        self._is_new = True

    def append(self, record: dict[str, Any]) -> str:
        """Append the record. Returns why that failed, and what to do, if it is the first failure in a row, else ""."""
        self._pending += log_line(record).encode("utf-8")
        was_failing, self._is_failing = self._is_failing, True
        try:
            self._write_pending()
        except OSError as error:
            return "" if was_failing else f"{error.strerror or error}. {failed_write_advice(error)}"
        self._is_failing = False
        return ""

    def _write_pending(self) -> None:
        if self._is_new and _ends_within_a_line(self._path):
            self._pending = b"\n" + self._pending  # the process was killed while it wrote
        self._is_new = False
        with self._path.open("ab", buffering=0) as file:
            while self._pending:
                written = file.write(self._pending)
                self._pending = self._pending[len(self._pending) if written is None else written :]


def log_events(events: Iterable[Event], log: Path) -> Iterator[Event]:
    """The same events, each also written to `log` as a line of JSON with its time; with a failure's reason last.

    A log that cannot be written is a warning. LoraTrainError for every failure: the traceback of an unexpected one is
    in the folder of the log.
    """
    lines = EventLog(log)
    try:
        for event in events:
            reason = lines.append(log_record(event))
            if reason:
                yield log_warning(log, reason)
            yield event
    except LoraTrainError as error:
        lines.append(log_record(StateChanged("failed", str(error), error.offer)))
        raise
    except Exception as error:  # the edge of the run, as in `Runner`
        reason = describe_crash(error, RunFolder(log.parent))
        lines.append(log_record(StateChanged("failed", reason)))
        raise LoraTrainError(reason) from error


def log_warning(log: Path, reason: str) -> Noted:
    """The warning that the log cannot be written, with the reason of `EventLog.append`."""
    text = f"cannot be written: {reason} The run continues and writes the missing lines when it can."
    return Noted("warning", str(log), text)


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The records in order, none if there is no log or it cannot be read.

    Only records that fit their event are returned, so that readers can rely on every field.
    After a crash a resumed run repeats some steps, so their records appear twice.
    """
    return (record for record in read_lines(path) if record is not None)


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Each line's record; None for one that is cut short, damaged or of another version."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    yield _parse(line)
    except OSError:
        return


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and fits(record) else None
