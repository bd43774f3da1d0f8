"""Runs that wait for their turn, in order, as one file; they survive the end of the program.

One queue per outputs folder. Nothing starts here: the runner takes the first one when it is free.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig, config_values, read_config
from lib_lora_train.config.validation.validate import require_usable
from lib_lora_train.core.errors import HostError
from lib_lora_train.runs.folder import write_json


@dataclass(frozen=True)
class Waiting:
    """A run that waits. `values` are its settings; `run` is the id of the run that shall go on, "" for a new one."""

    id: str
    values: Mapping[str, Any]
    run: str = ""
    more_epochs: int = 0

    @property
    def name(self) -> str:
        """What its files will be called."""
        return str(self.values.get("output_name", ""))

    def config(self) -> TrainConfig:
        """The settings; ConfigError if this version cannot read them."""
        config, problems = read_config(self.values)
        require_usable(problems)
        return config


class RunQueue:
    """The waiting runs, the next one first. All methods are safe to call from any thread.

    HostError for an id that does not wait (any more), OutputError when the file cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._waiting = _load(file)

    def waiting(self) -> tuple[Waiting, ...]:
        """The waiting runs in order."""
        with self._lock:
            return tuple(self._waiting)

    def add(self, config: TrainConfig, *, run: str = "", more_epochs: int = 0) -> str:
        """Put a run at the end; returns the entry's id."""
        entry = Waiting(uuid.uuid4().hex[:12], config_values(config), run, more_epochs)
        with self._lock:
            self._replace([*self._waiting, entry])
        return entry.id

    def move(self, entry_id: str, place: int) -> None:
        """Put a waiting run at a place, from 0; beyond the end is the end."""
        with self._lock:
            entry = self._find(entry_id)
            others = [other for other in self._waiting if other is not entry]
            place = max(0, place)
            self._replace([*others[:place], entry, *others[place:]])

    def remove(self, entry_id: str) -> None:
        """Let a run not wait any more."""
        with self._lock:
            entry = self._find(entry_id)
            self._replace([other for other in self._waiting if other is not entry])

    def take(self) -> Waiting | None:
        """The next run, which does not wait any more; None if none waits."""
        with self._lock:
            if not self._waiting:
                return None
            first, *rest = self._waiting
            self._replace(rest)
            return first

    def _find(self, entry_id: str) -> Waiting:
        for entry in self._waiting:
            if entry.id == entry_id:
                return entry
        raise HostError("This run does not wait any more. Look at the queue again.")

    def _replace(self, waiting: list[Waiting]) -> None:
        """On the disk first, so that what is told is true after a crash as well."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"waiting": [asdict(entry) for entry in waiting]})
        self._waiting = waiting


def _load(file: Path) -> list[Waiting]:
    """The waiting runs in a file; none if there is no file, or it was damaged by hand."""
    try:
        return [Waiting(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))["waiting"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
