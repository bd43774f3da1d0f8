"""Where the files of one run lie."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.errors import OutputError


@dataclass(frozen=True)
class RunFolder:
    """Where everything of one run but the LoRA files lies."""

    root: Path

    @property
    def log(self) -> Path:
        """One JSON event per line."""
        return self.root / "events.jsonl"

    @property
    def config(self) -> Path:
        """The settings, ready to be trained again."""
        return self.root / "config.toml"

    @property
    def samples(self) -> Path:
        """`epoch-000003-02.png`: third epoch, second prompt, counted from 1; epoch 0 is without LoRA."""
        return self.root / "samples"

    @property
    def grid(self) -> Path:
        """Epochs × prompts."""
        return self.root / "grid.png"

    @property
    def report(self) -> Path:
        """What was measured."""
        return self.root / "report.json"

    @property
    def crash_report(self) -> Path:
        """The traceback, if the run died of a fault of ours."""
        return self.root / "crash.txt"


def new_run_folder(home: Path, name: str) -> RunFolder:
    """A fresh folder `home/20260131-184500-name`; OutputError when it cannot be made."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        folder = RunFolder(home / f"{stamp}-{name}{suffix}")
        try:
            folder.samples.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(
                f"Cannot make the run folder {folder.root}: {error.strerror}. Choose another place."
            ) from error
        return folder
    raise OutputError(f"{home} is full of runs of the same second. Choose another place.")
