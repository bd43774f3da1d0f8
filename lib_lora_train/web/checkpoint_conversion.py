"""The Tools panel: a checkpoint written again, in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.core.control import RunStoppedError
from lib_lora_train.core.errors import ModelError
from lib_lora_train.lora_tools.checkpoint_changes import CheckpointChanges
from lib_lora_train.web.json_values import optional_path
from lib_lora_train.web.lora_tools import output_path
from lib_lora_train.web.task_session import TaskSession


class CheckpointConversion(TaskSession):
    """Converts one checkpoint at a time, beside the original; existing files are never overwritten.

    `stop` ends it after the current tensor; nothing is written.
    """

    def __init__(self) -> None:
        super().__init__("conversion")
        self._result: dict[str, Any] | None = None

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        names = {"start": self.start, "status": self.status, "stop": self.stop}
        return {f"convert-checkpoint-{name}": action for name, action in names.items()}

    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Convert `file` with `precision`, `vae` and `ema` as in `CheckpointChanges`; the status."""
        source = optional_path(values, "file")
        if source is None:
            raise ModelError("Enter a checkpoint: a .safetensors, .ckpt or .pt file.")
        vae, ema = optional_path(values, "vae"), str(values.get("ema") or "drop")
        changes = CheckpointChanges(str(values.get("precision") or ""), vae, ema)
        changes.check()
        path = output_path(values, source.parent, "-".join(filter(None, (source.stem, changes.name))))
        self.task.start(lambda: self._convert(source, path, changes))
        return self.status({})

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The progress, and what was written last, None while it runs."""
        return {**self.task.status(), "result": self._result}

    def _convert(self, source: Path, path: Path, changes: CheckpointChanges) -> None:
        from lib_lora_train.lora_tools.convert_checkpoint import convert_checkpoint

        self._result = None
        self.task.start_phase("Reading the checkpoint", 0)
        try:
            written = convert_checkpoint(source, path, changes, on_tensor=self.task.count_units("tensors written"))
        except RunStoppedError:
            return
        self._result = {"path": str(path), "megabytes": written.size_bytes / 1e6, "notes": list(written.notes)}
