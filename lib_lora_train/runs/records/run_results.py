"""What came of a run, read from its folder for a comparison with others. Does not import PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import newest_advice, read_loras
from lib_lora_train.runs.records.moved_run import read_move


@dataclass(frozen=True)
class Sample:
    """A sample image after an epoch (0: without LoRA)."""

    path: Path
    epoch: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class RunResult:
    """A run as far as it has come: its settings, its finished epochs and what was measured and drawn after each.

    `files` are its existing LoRA files by epoch; `advised` is the epoch that the advisor names, 0 for none; `reason`
    says why it failed, "" if it did not.
    """

    run: str
    state: str
    config: TrainConfig
    reason: str = ""
    epochs: tuple[int, ...] = ()
    measured: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    files: Mapping[int, Path] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    advised: int = 0


def read_result(folder: RunFolder) -> RunResult:
    """The result of the run in a folder. Settings that this version cannot read have their defaults."""
    move = read_move(folder)
    records = [move.record(record) for record in _read_milestones(folder.log)]
    state, reason = _last_state(records)
    ends = _epoch_ends(records)
    return RunResult(
        run=folder.root.name,
        state=state,
        config=read_settings(folder),
        reason=reason if state == "failed" else "",
        epochs=tuple(sorted(ends)),
        measured={epoch: values for epoch, values in _measured(records).items() if not epoch or epoch in ends},
        files={file.epoch: file.path for file in read_loras(folder, records) if file.epoch and not file.is_missing},
        samples=_samples(records, {0, *ends}),
        advised=(newest_advice(records) or {"epoch": 0})["epoch"],
    )


def read_settings(folder: RunFolder) -> TrainConfig:
    """The settings of the run in a folder; the defaults if the file is gone or this version cannot read it."""
    try:
        return read_config(read_toml_config(folder.config, is_ours=True))[0]
    except LoraTrainError:  # the file is gone or was edited by hand
        return TrainConfig()


def _read_milestones(log: Path) -> tuple[Mapping[str, Any], ...]:
    """The records of a log without single steps, which are nearly all of it; a file that has not changed is kept."""
    status = log.stat()
    return _parse_milestones(log, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _parse_milestones(log: Path, _size: int, _changed: int) -> tuple[Mapping[str, Any], ...]:
    return tuple(record for record in read_log(log) if record["kind"] not in ("StepDone", "Progress"))


def _last_state(records: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    states = [(r["state"], str(r.get("message", ""))) for r in records if r["kind"] == "StateChanged"]
    return states[-1] if states else ("", "")


def _epoch_ends(records: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """The last step of each finished epoch; epochs after the step that the run resumed from were not finished."""
    ends: dict[int, int] = {}
    for record in records:
        if record["kind"] == "EpochDone":
            ends[int(record["epoch"])] = int(record["step"])
        elif record["kind"] == "Resumed":
            ends = {epoch: step for epoch, step in ends.items() if step <= record["step"]}
    return ends


def _measured(records: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    measured: dict[int, dict[str, float]] = {}
    for record in records:
        if record["kind"] == "Measured":
            measured.setdefault(int(record["epoch"]), {}).update(record["values"])
    return measured


def _samples(records: Iterable[Mapping[str, Any]], epochs: set[int]) -> tuple[Sample, ...]:
    """The newest image of each prompt and epoch that still exists, in the order in which they were drawn."""
    found = {
        (int(r["epoch"]), r["prompt"], r["seed"]): Sample(Path(r["path"]), int(r["epoch"]), r["prompt"], r["seed"])
        for r in records
        if r["kind"] == "SampleDrawn" and not r.get("step") and r["epoch"] in epochs
    }
    return tuple(sample for sample in found.values() if sample.path.is_file())
