"""What all sessions with a background task share: its progress, and stopping it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lora_train.core.background_task import BackgroundTask


class TaskSession:
    """A session that does its work in one `task` at a time. `name` is what error messages call it: "tag report"."""

    def __init__(self, name: str) -> None:
        self.task = BackgroundTask(name)

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The progress."""
        return self.task.status()

    def stop(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Stop after the current unit of work; the status."""
        self.task.stop()
        return self.status(values)
