"""What a run has done so far, read from its log. Does not import PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lib_lora_train.evaluation.strength_search import Trial
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.moved_run import read_move
from lib_lora_train.runs.records.past_config import is_lora_run


@dataclass(frozen=True)
class SavedLora:
    """A LoRA file of the run; `epoch` is 0 if it is named after its step."""

    path: Path
    epoch: int
    step: int


@dataclass(frozen=True)
class FoundLora:
    """A LoRA file of the run as it is now: `recorded` is its path in the log, and `is_missing` if nothing is at `path`.

    `epoch` is 0 if it is named after its step.
    """

    path: Path
    recorded: Path
    epoch: int
    step: int
    is_missing: bool


def epoch_name(run: str, epoch: int) -> str:
    """The stem of an epoch's LoRA file, as kohya's tools write it; such names sort."""
    return f"{run}-{epoch:06}"


def step_name(run: str, step: int) -> str:
    """The stem of a step's LoRA file."""
    return f"{run}-step{step:08}"


@dataclass
class RunHistory:
    """What a run has done.

    `losses`: mean loss by finished epoch, `ends` its last step, `samples` the number of its samples; `files`: the LoRA
    files that were not deleted, by path, in the order they were saved; `unfinished_samples`: by (epoch, step), step 0
    for the end of the epoch, how many samples are missing of those that were started; `measured`: the measures of each
    finished epoch and of 0, without LoRA; `trials`: those of the strength test.
    """

    losses: dict[int, float] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    samples: dict[int, int] = field(default_factory=dict)
    files: dict[Path, SavedLora] = field(default_factory=dict)
    unfinished_samples: dict[tuple[int, int], int] = field(default_factory=dict)
    measured: dict[int, dict[str, float]] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)

    def loss_text(self, epoch: int) -> str:
        """`loss 0.1234`, or "" for an unfinished epoch."""
        return f"loss {self.losses[epoch]:.4f}" if epoch in self.losses else ""

    def add(self, file: SavedLora) -> None:
        """Add a file, replacing one with the same path."""
        self.files.pop(file.path, None)
        self.files[file.path] = file

    def add_trial(self, trial: Trial) -> None:
        """Add a trial, replacing one of the same epoch and strength."""
        self.trials = [*(one for one in self.trials if one.place != trial.place), trial]

    def forget(self, step: int) -> None:
        """Drop the numbers of epochs that ended after `step`."""
        late = {epoch for epoch, end in self.ends.items() if end > step}
        self.losses = {epoch: loss for epoch, loss in self.losses.items() if epoch not in late}
        self.measured = {epoch: values for epoch, values in self.measured.items() if epoch not in late}
        self.trials = [trial for trial in self.trials if trial.epoch not in late]

    def epoch_files(self) -> dict[int, Path]:
        """The files of whole epochs, by epoch."""
        return {file.epoch: file.path for file in self.files.values() if file.epoch}

    def step_files(self) -> dict[int, Path]:
        """The files named after their step, by step."""
        return {file.step: file.path for file in self.files.values() if not file.epoch}


def read_history(folder: RunFolder, step: int) -> RunHistory:
    """What the run had done after `step` steps, without files that no longer exist.

    Files of later steps are included: they belong to this run and will be overwritten.
    """
    history = read_records(read_log(folder.log))
    move = read_move(folder)
    found = [replace(file, path=move.find(file.path)) for file in history.files.values()]
    history.files = {file.path: file for file in found if file.path.is_file()}
    history.forget(step)
    return history


def read_loras(folder: RunFolder, records: Iterable[Mapping[str, Any]] | None = None) -> tuple[FoundLora, ...]:
    """All LoRA files on the run's record by step, but those that were deleted or renamed on purpose.

    `records` are those of its log, if they were read already.
    """
    move = read_move(folder)
    files = read_records(read_log(folder.log) if records is None else records).files.values()
    places = [(file, move.find(file.path)) for file in sorted(files, key=lambda file: file.step)]
    return tuple(FoundLora(path, file.path, file.epoch, file.step, not path.is_file()) for file, path in places)


def newest_lora(folder: RunFolder) -> Path | None:
    """The LoRA file of the latest step that still exists; None if there is none, as in a run of textual inversion."""
    if not is_lora_run(folder):
        return None
    return next((file.path for file in reversed(read_loras(folder)) if not file.is_missing), None)


def read_records(records: Iterable[Mapping[str, Any]]) -> RunHistory:
    """The history from these log records."""
    history = RunHistory()
    for record in records:
        _count_samples(history.unfinished_samples, record)
        if record["kind"] == "EpochDone":
            history.losses[record["epoch"]] = record["mean_loss"]
            history.ends[record["epoch"]] = record["step"]
            history.samples[record["epoch"]] = 0
        elif record["kind"] == "SampleDrawn" and not record.get("step") and record["epoch"] in history.samples:
            history.samples[record["epoch"]] += 1
        elif record["kind"] == "LoraWritten":
            path = Path(record["path"])
            is_step_file = path.stem.endswith(step_name("", record["step"]))
            history.add(SavedLora(path, 0 if is_step_file else record["epoch"], record["step"]))
        elif record["kind"] == "LoraRemoved":
            history.files.pop(Path(record["path"]), None)
        elif record["kind"] == "Measured":
            history.measured.setdefault(record["epoch"], {}).update(record["values"])
        elif record["kind"] == "Resumed":
            history.forget(record["step"])
        elif record["kind"] == "StrengthTested":
            history.add_trial(trial_from(record))
    return history


def newest_advice(records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The newest `Advised` record; None if there is none, or if the run was trained on after it."""
    found = None
    for record in records:
        if record["kind"] == "Advised":
            found = record
        elif record["kind"] in ("Resumed", "EpochDone"):
            found = None
    return found


def trial_from(record: Mapping[str, Any]) -> Trial:
    """The trial of a `StrengthTested` record."""
    likeness, change = tuple(record["likeness"]), tuple(record["change"])
    return Trial(record["epoch"], record["strength"], likeness, change, record["roughness"])


def _count_samples(unfinished: dict[tuple[int, int], int], record: Mapping[str, Any]) -> None:
    """Update the numbers of missing samples."""
    if record["kind"] == "SamplesStarted":
        unfinished[record["epoch"], record["step"]] = record["count"]
    elif record["kind"] == "SampleDrawn":
        row = record["epoch"], record.get("step", 0)
        unfinished[row] = unfinished.get(row, 0) - 1
        if unfinished[row] <= 0:
            del unfinished[row]
