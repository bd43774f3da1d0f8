"""Where the files of one run lie."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.core import atomic_write as whole_file
from lib_lora_train.core.errors import OutputError, TrainingError


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
    def identity(self) -> Path:
        """Under which name the run writes its files, and since when; see `Identity`."""
        return self.root / "run.json"

    @property
    def states(self) -> Path:
        """`step-00000120.pt`: all that is needed to go on after 120 steps."""
        return self.root / "states"

    @property
    def samples(self) -> Path:
        """`epoch-000003-02.png`: third epoch, second prompt, counted from 1; epoch 0 is without LoRA.

        `step-00000120-02.png` is within an epoch.
        """
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

    def state_after(self, step: int) -> Path:
        """The state after so many steps."""
        return self.states / f"step-{step:08}.pt"

    def state_steps(self) -> list[int]:
        """After how many steps a state stands here, the newest last."""
        names = (path.stem.removeprefix("step-") for path in self.states.glob("step-*.pt"))
        return sorted(int(name) for name in names if name.isdecimal())

    def sample(self, epoch: int, number: int, step: int = 0) -> Path:
        """The image of a prompt, counted from 1, after an epoch or, within one, after a step."""
        moment = f"step-{step:08}" if step else f"epoch-{epoch:06}"
        return self.samples / f"{moment}-{number:02}.png"


@dataclass(frozen=True)
class Identity:
    """What stays the same when a run is interrupted: the name of its files, where they go, its session, its start."""

    name: str
    lora_dir: str
    session: str
    started: float


def write_identity(folder: RunFolder, identity: Identity) -> None:
    """Write it whole or not at all; OutputError when it cannot be written."""
    write_json(folder.identity, asdict(identity))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write the values in one moment; OutputError when that fails."""
    whole_file.write_text(path, json.dumps(values, indent=1, ensure_ascii=False))


def read_identity(folder: RunFolder) -> Identity:
    """The identity of a run that began; TrainingError if the folder holds none."""
    try:
        return Identity(**json.loads(folder.identity.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        text = f"{folder.root} is no folder of a run that can go on. Choose another run, or start a new one."
        raise TrainingError(text) from None


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
