"""The queue of runs, stored in one file so that it survives a restart.

There is one queue per outputs folder. The runner starts the first entry when it is idle.
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
class QueuedRun:
    """A queued run. `values` are its settings; `run` is the id of the run to resume, "" for a new one."""

    id: str
    values: Mapping[str, Any]
    run: str = ""
    more_epochs: int = 0

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

    HostError for an id that is not (or no longer) in the queue, OutputError if the file cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._entries = _load(file)

    def entries(self) -> tuple[QueuedRun, ...]:
        """The queued runs in order."""
        with self._lock:
            return tuple(self._entries)

    def add(self, config: TrainConfig, *, run: str = "", more_epochs: int = 0) -> str:
        """Add a run at the end; returns the entry's id."""
        entry = QueuedRun(uuid.uuid4().hex[:12], config_values(config), run, more_epochs)
        with self._lock:
            self._replace([*self._entries, entry])
        return entry.id

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

    def pop(self) -> QueuedRun | None:
        """Remove and return the next run; None if the queue is empty."""
        with self._lock:
            if not self._entries:
                return None
            first, *rest = self._entries
            self._replace(rest)
            return first

    def _find(self, entry_id: str) -> QueuedRun:
        for entry in self._entries:
            if entry.id == entry_id:
                return entry
        raise HostError("This run is no longer in the queue. Refresh the queue.")

    def _replace(self, entries: list[QueuedRun]) -> None:
        """Write the new queue to disk first, so that memory never runs ahead of the file."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {"waiting": [asdict(entry) for entry in entries]})
        self._entries = entries


def _load(file: Path) -> list[QueuedRun]:
    """The queued runs in a file; none if the file is missing or damaged."""
    try:
        return [QueuedRun(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))["waiting"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
