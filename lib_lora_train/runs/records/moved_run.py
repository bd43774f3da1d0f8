"""Finds the files of a run that was moved to another folder or machine."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.toml import PATH_SETTINGS
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder


@dataclass(frozen=True)
class Move:
    """Where a run folder has been before, and where it is now."""

    before: tuple[Path, ...]
    now: Path

    def find(self, path: str | Path) -> Path:
        """The path itself, or, if nothing is there, the same place seen from the moved run, if something is there."""
        path = Path(path)
        if not self.before or path.exists():
            return path
        moved = (_moved(path, root, self.now) for root in self.before)
        return next((place for place in moved if place.exists()), path)

    def find_text(self, path: str) -> str:
        """`find` for a setting, which may be empty."""
        return str(self.find(path)) if path.strip() else path

    def record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A log record with its file found again."""
        return {**record, "path": str(self.find(record["path"]))} if "path" in record else dict(record)

    def config(self, config: TrainConfig) -> TrainConfig:
        """The settings with every path found again."""
        paths = {name: self.find_text(getattr(config, name)) for name in PATH_SETTINGS}
        concepts = tuple(dataclasses.replace(c, folder=self.find_text(c.folder)) for c in config.concepts)
        return config.replace(concepts=concepts, **paths)


def read_move(folder: RunFolder) -> Move:
    """Where the run folder was when its files were written: from `run.json`, or from the log of older versions."""
    now = folder.root.absolute()
    try:
        found = json.loads(folder.identity.read_text(encoding="utf-8")).get("roots")
    except (OSError, ValueError, AttributeError):
        found = None
    roots = [Path(root) for root in found if isinstance(root, str)] if isinstance(found, list) else []
    logged = None if roots else _logged_root(folder)
    return Move(tuple(root for root in (*roots, logged) if root and root != now), now)


def _moved(path: Path, before: Path, now: Path) -> Path:
    """The path after everything beside `before` was moved along with it to `now`."""
    try:
        return Path(os.path.normpath(now / os.path.relpath(path, before)))
    except ValueError:  # on another drive
        return path


def _logged_root(folder: RunFolder) -> Path | None:
    """The run folder in the paths of its states and samples, which are in sub-folders of it."""
    for record in read_log(folder.log):
        if record["kind"] in ("StateSaved", "SampleDrawn"):
            return Path(record["path"]).parent.parent
    return None
