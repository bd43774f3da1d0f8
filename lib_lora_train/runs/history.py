"""What a run has done so far, read from its log; no PyTorch is needed for that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora_train.runs.event_log import read_log
from lib_lora_train.runs.folder import RunFolder


@dataclass(frozen=True)
class Written:
    """A LoRA file of the run; `epoch` is 0 for one that is named after its step."""

    path: Path
    epoch: int
    step: int


def epoch_name(run: str, epoch: int) -> str:
    """A LoRA file's name, without ending, after an epoch: as kohya's tools write it, so that files sort."""
    return f"{run}-{epoch:06}"


def step_name(run: str, step: int) -> str:
    """A LoRA file's name, without ending, after a step."""
    return f"{run}-step{step:08}"


@dataclass
class History:
    """What a run has done.

    `losses`: the mean loss by epoch that is over; `samples`: how many images were drawn after its end; `files`: the
    LoRA files that were not deleted, by path, in order of writing.
    """

    losses: dict[int, float] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    files: dict[Path, Written] = field(default_factory=dict)

    def loss_text(self, epoch: int) -> str:
        """`loss 0.1234`, "" for an epoch that is not over."""
        return f"loss {self.losses[epoch]:.4f}" if epoch in self.losses else ""

    def take(self, file: Written) -> None:
        """Remember a file; one of the same path gives way."""
        self.files.pop(file.path, None)
        self.files[file.path] = file

    def epoch_files(self) -> dict[int, Path]:
        """The files of whole epochs, by epoch."""
        return {file.epoch: file.path for file in self.files.values() if file.epoch}

    def step_files(self) -> dict[int, Path]:
        """The files named after their step, by step."""
        return {file.step: file.path for file in self.files.values() if not file.epoch}


def read_history(folder: RunFolder, step: int) -> History:
    """What the run in the folder had done when it had taken `step` steps, as far as its files are still there.

    Files of later steps are kept in it: they are this run's, and will be written again.
    """
    history = read_records(read_log(folder.log))
    history.files = {path: file for path, file in history.files.items() if path.is_file()}
    ends = {int(r["epoch"]): int(r["step"]) for r in read_log(folder.log) if r["kind"] == "EpochDone"}
    history.losses = {epoch: loss for epoch, loss in history.losses.items() if ends[epoch] <= step}
    return history


def read_records(records: Iterable[Mapping[str, Any]]) -> History:
    """The history that these records tell."""
    history = History()
    for record in records:
        if record["kind"] == "EpochDone":
            history.losses[record["epoch"]] = record["mean_loss"]
            history.samples[record["epoch"]] = 0
        elif record["kind"] == "SampleDrawn" and not record.get("step") and record["epoch"] in history.samples:
            history.samples[record["epoch"]] += 1
        elif record["kind"] == "LoraWritten":
            path = Path(record["path"])
            is_step_file = path.stem.endswith(step_name("", record["step"]))
            history.take(Written(path, 0 if is_step_file else record["epoch"], record["step"]))
        elif record["kind"] == "LoraRemoved":
            history.files.pop(Path(record["path"]), None)
    return history
