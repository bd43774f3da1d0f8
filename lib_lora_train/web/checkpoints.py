"""The checkpoint picker: the files in the models folders, each with what it is, and the choice of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.user_paths import is_file, is_folder, user_path
from lib_lora_train.core.wording import without_name
from lib_lora_train.hosts.host import Host
from lib_lora_train.models.checkpoint_files import scan_checkpoints
from lib_lora_train.models.model_files import read_checkpoint_info
from lib_lora_train.web.form import Form, with_values
from lib_lora_train.web.form_changes import Change

_SHOWN = 200


class CheckpointPicker:
    """Actions of the page. `draft_config` returns the settings of the form, `stage` holds a change of it."""

    def __init__(self, host: Host, draft_config: Callable[[], TrainConfig], stage: Callable[[Change], None]) -> None:
        self._host = host
        self._draft_config = draft_config
        self._stage = stage

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]]:
        """The actions that the page can request, by name."""
        return {"checkpoints-list": self.list_checkpoints, "checkpoints-use": self.use}

    def list_checkpoints(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The files in the models folders and beside the one that is typed; each has a `description` or a `problem`.

        `current` is the model that is used while the field is empty.
        """
        files = list(dict.fromkeys(self._files(str(values.get("checkpoint", "")))))
        current = self._host.run_target(self._draft_config().replace(checkpoint="")).checkpoint
        return {
            "files": [describe_file(path) for path in files[:_SHOWN]],
            "left_out": max(0, len(files) - _SHOWN),
            "current": current.stem if current else "",
        }

    def _files(self, typed: str) -> Iterator[Path]:
        yield from (path for path in self._host.checkpoint_files() if is_file(path) or is_folder(path))
        if typed.strip():
            yield from scan_checkpoints(_folder_of(user_path(typed)))

    def use(self, values: Mapping[str, Any]) -> None:
        """Stage the chosen file for the form; "" is the host's own model."""
        path = str(values["checkpoint"])

        def change(form: Form) -> tuple[dict[str, Any], str]:
            name = Path(path).stem if path else "the host's own model"
            return with_values(form, {"checkpoint": path}), f"Checkpoint changed to {name}."

        self._stage(change)


def _folder_of(path: Path) -> Path:
    """The folder that is typed, or that of the file or model folder."""
    return path if is_folder(path) and not is_file(path / "model_index.json") else path.parent


def describe_file(path: Path) -> dict[str, str]:
    """The path and name of a checkpoint, and what it is, or why it cannot be trained on."""
    found = {"path": str(path), "name": path.name, "description": "", "problem": ""}
    try:
        description = read_checkpoint_info(path).description
        return {**found, "description": description.partition(": ")[2]}
    except ModelError as reason:
        return {**found, "problem": without_name(str(reason), str(path))}
