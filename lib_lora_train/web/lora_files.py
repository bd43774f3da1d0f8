"""The LoRA picker: the files in all folders of the host, newest first, each with its folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.core.user_paths import is_file, user_path
from lib_lora_train.hosts.host import Host, other_lora
from lib_lora_train.web.form import Form, with_values
from lib_lora_train.web.form_changes import Change

_SHOWN = 200
_MEGABYTE = 1e6


class LoraPicker:
    """Actions of the page. `stage` holds a change of the form."""

    def __init__(self, host: Host, stage: Callable[[Change], None]) -> None:
        self._host = host
        self._stage = stage

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]]:
        """The actions that the page can request, by name."""
        return {"loras-list": self.list_files, "loras-use": self.use}

    def list_files(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The files in the host's folders and beside the one that is typed; each has a `description`.

        Of files with the same name, it says which one prompts do not read.
        """
        found = {path: status for path in self._files(str(values.get("file", ""))) if (status := _status(path))}
        files = sorted(found, key=lambda path: (-found[path].st_mtime, str(path)))
        names = Counter(path.stem for path in files)
        return {
            "files": [self._describe(path, found[path].st_size, names[path.stem] > 1) for path in files[:_SHOWN]],
            "left_out": max(0, len(files) - _SHOWN),
            "current": "",
        }

    def _files(self, typed: str) -> Iterator[Path]:
        for folder in self._host.lora_dirs:
            yield from folder.rglob("*.safetensors")
        if typed.strip():
            path = user_path(typed)
            yield from (path if path.is_dir() else path.parent).glob("*.safetensors")

    def _describe(self, path: Path, size: int, is_double: bool) -> dict[str, str]:
        """The path, the name, and the folder and size."""
        text = f"{path.parent}, {size / _MEGABYTE:.1f} MB"
        if is_double and other_lora(self._host.lora_file(path.stem), path):
            text += "; prompts read the other file of this name"
        return {"path": str(path), "name": path.name, "description": text, "problem": ""}

    def use(self, values: Mapping[str, Any]) -> None:
        """Stage the chosen file for the form, to continue from."""
        path = str(values["file"])

        def change(form: Form) -> tuple[dict[str, Any], str]:
            return with_values(form, {"continue_from": path}), f"The run continues from {Path(path).name}."

        self._stage(change)


def _status(path: Path) -> os.stat_result | None:
    """Size and time of a file; None if it is none, or is gone."""
    try:
        return path.stat() if is_file(path) else None
    except OSError:
        return None
