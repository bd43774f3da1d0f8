"""The queue of runs, stored in one file so that it survives a restart.

There is one queue per outputs folder. The runner starts the first entry when it is idle.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig, config_values, read_config
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.core.errors import HostError, OutputError
from lib_lora_train.runs.records.folder import write_json


@dataclass(frozen=True)
class QueuedRun:
    """A queued run. `values` are its settings; `run` is the id of the run to resume, "" for a new one.

    `problem` is why it could not start when its turn came, "" if it has not been tried; `model`
    has the values of the `ModelIdentity` that was in use when it was queued. `origin` has the values of the `Origin` of
    a run that belongs to a sweep.
    """

    id: str
    values: Mapping[str, Any]
    run: str = ""
    more_epochs: int = 0
    problem: str = ""
    model: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of its LoRA files."""
        return str(self.values.get("output_name", ""))

    def config(self) -> TrainConfig:
        """The settings; ConfigError if this version cannot read them."""
        config, problems = read_config(self.values)
        require_usable(problems)
        return config


class RunQueue:
    """The queued runs, the next one first. Thread-safe.

    HostError for an id that is not (or no longer) in the queue, OutputError if the file cannot be written. `problem`
    names what the file has beside runs that can be read, "" if nothing.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._entries, self.problem = _load(file)

    def entries(self) -> tuple[QueuedRun, ...]:
        """The queued runs in order."""
        with self._lock:
            return tuple(self._entries)

    def add(
        self, config: TrainConfig, *, run: str = "", more_epochs: int = 0, model: Mapping[str, str] | None = None
    ) -> str:
        """Add a run at the end; returns the entry's id."""
        entry = new_entry(config, run=run, more_epochs=more_epochs, model=model)
        self.add_all((entry,))
        return entry.id

    def add_all(self, entries: Sequence[QueuedRun]) -> None:
        """Add runs at the end: all of them or, if the file cannot be written, none."""
        with self._lock:
            self._replace([*self._entries, *entries])

    def move(self, entry_id: str, position: int) -> None:
        """Move a queued run to a position from 0; positions beyond the end mean the end."""
        with self._lock:
            entry = self._find(entry_id)
            others = [other for other in self._entries if other is not entry]
            position = max(0, position)
            self._replace([*others[:position], entry, *others[position:]])

    def remove(self, entry_id: str) -> None:
        """Remove a run from the queue."""
        with self._lock:
            entry = self._find(entry_id)
            self._replace([other for other in self._entries if other is not entry])

    def set_problem(self, entry_id: str, problem: str) -> None:
        """Note why a queued run could not start; it keeps its place."""
        with self._lock:
            entry = self._find(entry_id)
            if entry.problem != problem:
                self._replace([replace(e, problem=problem) if e is entry else e for e in self._entries])

    def _find(self, entry_id: str) -> QueuedRun:
        for entry in self._entries:
            if entry.id == entry_id:
                return entry
        raise HostError("This run is no longer in the queue. Refresh the queue.")

    def _replace(self, entries: list[QueuedRun]) -> None:
        """Write the new queue to disk first, so that memory never runs ahead of the file."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self.problem:  # entries that this version cannot read stay on disk
                self._file.replace(unused_path(self._file.with_suffix(".unread.json")))
                self.problem = ""
        except OSError as error:
            raise OutputError(f"{self._file} cannot be written: {error.strerror or error}.") from error
        write_json(self._file, {"waiting": [asdict(entry) for entry in entries]})
        self._entries = entries


def new_entry(
    config: TrainConfig,
    *,
    run: str = "",
    more_epochs: int = 0,
    model: Mapping[str, str] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> QueuedRun:
    """An entry with a new id."""
    return QueuedRun(
        uuid.uuid4().hex[:12], config_values(config), run, more_epochs, model=model or {}, origin=origin or {}
    )


def unused_path(path: Path) -> Path:
    """`NAME.json`, or `NAME-2.json`, `NAME-3.json`…: the first one that does not exist."""
    names = (path, *(path.with_stem(f"{path.stem}-{number}") for number in range(2, 1000)))
    return next((name for name in names if not name.exists()), path)


def _load(file: Path) -> tuple[list[QueuedRun], str]:
    """The queued runs in a file, and a sentence about what else it contains; nothing if there is no file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))["waiting"]
        found = [_entry(value) for value in values]
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return [], f"{file} is damaged, so the queue is empty. Add the runs again; the file is kept under another name."
    entries = [entry for entry in found if entry]
    if len(entries) == len(found):
        return entries, ""
    missing = ", ".join(str(number) for number, entry in enumerate(found, start=1) if entry is None)
    text = f"Entry {missing} of {file} cannot be read and is left out. Add that run again"
    return entries, f"{text}; the file is kept under another name."


def _entry(values: Any) -> QueuedRun | None:
    """The queued run in a JSON value; None if it is not one. Unknown fields are of another version and ignored."""
    if not isinstance(values, dict):
        return None
    kinds = {"id": str, "values": dict, "run": str, "more_epochs": int, "problem": str, "model": dict, "origin": dict}
    known = {one.name: values[one.name] for one in fields(QueuedRun) if one.name in values}
    is_right = all(isinstance(value, kinds[name]) for name, value in known.items())
    return QueuedRun(**known) if is_right and {"id", "values"} <= known.keys() else None
