"""What a run has done so far, from the records of its log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.events import (
    Advised,
    EpochDone,
    Event,
    LoraRemoved,
    LoraWritten,
    Measured,
    Resumed,
    SampleDrawn,
    SamplesStarted,
    StrengthTested,
    to_record,
)
from lib_lora_train.evaluation.strength_search import Trial
from lib_lora_train.runs.records.event_log import EventLog
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import (
    FoundLora,
    RunHistory,
    SavedLora,
    newest_advice,
    newest_lora,
    read_history,
    read_loras,
    read_records,
)


def _records(*events: Event) -> list[Mapping[str, Any]]:
    return [to_record(event) for event in events]


def _read(*events: Event) -> RunHistory:
    return read_records(_records(*events))


def _tested(epoch: int, strength: float, likeness: float = 0.5) -> StrengthTested:
    return StrengthTested(epoch, strength, (likeness, likeness), (0.1,), 1.2)


def _advised(epoch: int) -> Advised:
    return Advised(epoch, 1.0, is_sure=True, reasons=())


# --- epochs and measures ---------------------------------------------------------------------------


def test_losses_and_measures_of_each_epoch_are_known() -> None:
    history = _read(
        Measured(0, {"likeness": 0.0}),
        EpochDone(1, 10, 0.5),
        Measured(1, {"likeness": 0.4}),
        Measured(1, {"drift": 0.1}),
        Measured(1, {"likeness": 0.3}),
        EpochDone(2, 20, 0.25),
    )
    assert history.losses == {1: 0.5, 2: 0.25} and history.ends == {1: 10, 2: 20}
    assert history.measured == {0: {"likeness": 0.0}, 1: {"likeness": 0.3, "drift": 0.1}}
    assert history.loss_text(2) == "loss 0.2500" and history.loss_text(3) == ""


def test_of_the_trials_of_a_place_the_latest_counts() -> None:
    history = _read(_tested(1, 1.0), _tested(1, 1.25), _tested(2, 1.0), _tested(1, 1.0, 0.9))
    assert history.trials == [
        Trial(1, 1.25, (0.5, 0.5), (0.1,), 1.2),
        Trial(2, 1.0, (0.5, 0.5), (0.1,), 1.2),
        Trial(1, 1.0, (0.9, 0.9), (0.1,), 1.2),
    ]


def test_a_resumed_run_forgets_the_epochs_that_ended_later() -> None:
    """Not the one that ended at that very step, and not what was measured without LoRA."""
    epochs: list[Event] = []
    for epoch in (1, 2, 3):
        epochs += [
            EpochDone(epoch, 10 * epoch, epoch / 10),
            Measured(epoch, {"drift": epoch / 10}),
            _tested(epoch, 1.0),
        ]
    history = _read(Measured(0, {"drift": 0.0}), *epochs, Resumed(20), EpochDone(3, 30, 0.7))
    assert history.losses == {1: 0.1, 2: 0.2, 3: 0.7}
    assert history.measured == {0: {"drift": 0.0}, 1: {"drift": 0.1}, 2: {"drift": 0.2}}
    assert [trial.epoch for trial in history.trials] == [1, 2]


def test_an_advice_holds_until_the_run_is_trained_on() -> None:
    assert newest_advice([]) is None
    found = newest_advice(_records(EpochDone(1, 10, 0.5), _advised(1), _advised(2), Measured(1, {})))
    assert found and found["epoch"] == 2
    trained_on: list[Event] = [Resumed(10), EpochDone(2, 20, 0.4)]
    for later in trained_on:
        assert newest_advice(_records(_advised(1), later)) is None
        found = newest_advice(_records(_advised(1), later, _advised(2)))
        assert found and found["epoch"] == 2


# --- samples ---------------------------------------------------------------------------------------


def _drawn(epoch: int, step: int = 0) -> SampleDrawn:
    return SampleDrawn("a.png", epoch, "zok", 1, step)


def test_samples_count_for_the_end_of_a_finished_epoch() -> None:
    history = _read(
        _drawn(0), _drawn(1, 5), EpochDone(1, 10, 0.5), _drawn(1), _drawn(1), _drawn(1, 12), EpochDone(2, 20, 0.4)
    )
    assert history.samples == {1: 2, 2: 0}
    assert _read(EpochDone(1, 10, 0.5), _drawn(1), Resumed(0), EpochDone(1, 10, 0.5), _drawn(1)).samples == {1: 1}


def test_samples_that_were_started_are_unfinished_until_all_are_drawn() -> None:
    started = (SamplesStarted(1, 0, 2), SamplesStarted(1, 7, 3))
    assert _read(*started).unfinished_samples == {(1, 0): 2, (1, 7): 3}
    assert _read(*started, _drawn(1), _drawn(1, 7)).unfinished_samples == {(1, 0): 1, (1, 7): 2}
    assert _read(*started, _drawn(1), _drawn(1)).unfinished_samples == {(1, 7): 3}
    assert _read(*started, _drawn(1), SamplesStarted(1, 0, 2)).unfinished_samples == {(1, 0): 2, (1, 7): 3}


def test_samples_of_older_versions_have_neither_a_start_nor_a_step() -> None:
    record = {name: value for name, value in to_record(_drawn(1)).items() if name != "step"}
    history = read_records([to_record(EpochDone(1, 10, 0.5)), record, record])
    assert history.samples == {1: 2} and not history.unfinished_samples
    started = read_records([to_record(SamplesStarted(1, 0, 3)), record])
    assert started.unfinished_samples == {(1, 0): 2}


# --- files -----------------------------------------------------------------------------------------


def test_files_are_named_after_an_epoch_or_a_step() -> None:
    history = _read(
        LoraWritten("/a/zok-000001.safetensors", 1, 10),
        LoraWritten("/a/zok-step00000015.safetensors", 1, 15),
        LoraWritten("/a/zok-000002.safetensors", 2, 20),
        LoraWritten("/a/step16-000003.safetensors", 3, 16),
        LoraRemoved("/a/zok-000001.safetensors"),
        LoraRemoved("/a/of-another-run.safetensors"),
    )
    assert history.epoch_files() == {
        2: Path("/a/zok-000002.safetensors"),
        3: Path("/a/step16-000003.safetensors"),
    }
    assert history.step_files() == {15: Path("/a/zok-step00000015.safetensors")}


def test_a_file_that_is_written_again_is_the_newest_one() -> None:
    history = _read(LoraWritten("/a/b.safetensors", 1, 10), LoraWritten("/a/c.safetensors", 2, 20))
    history.add(SavedLora(Path("/a/b.safetensors"), 1, 11))
    assert [file.step for file in history.files.values()] == [20, 11]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of two epochs; of its three files, the one of the first epoch is gone."""
    folder = RunFolder(tmp_path / "run")
    folder.root.mkdir()
    log = EventLog(folder.log)
    events: list[Event] = [
        EpochDone(1, 10, 0.5),
        LoraWritten(str(tmp_path / "zok-000002.safetensors"), 2, 20),
        LoraWritten(str(tmp_path / "zok-step00000015.safetensors"), 1, 15),
        LoraWritten(str(tmp_path / "zok-000001.safetensors"), 1, 10),
        EpochDone(2, 20, 0.4),
    ]
    for event in events:
        log.append(to_record(event))
    for name in ("zok-000002", "zok-step00000015"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"weights")
    return folder


def test_after_a_step_the_history_has_the_files_that_exist_and_only_earlier_numbers(
    folder: RunFolder, tmp_path: Path
) -> None:
    history = read_history(folder, 10)
    assert history.losses == {1: 0.5}
    assert history.epoch_files() == {2: tmp_path / "zok-000002.safetensors"}
    assert history.step_files() == {15: tmp_path / "zok-step00000015.safetensors"}
    assert read_history(folder, 20).losses == {1: 0.5, 2: 0.4}


def test_all_files_on_record_are_listed_by_step_with_whether_they_exist(folder: RunFolder, tmp_path: Path) -> None:
    first, step, second = (tmp_path / f"zok-{name}.safetensors" for name in ("000001", "step00000015", "000002"))
    assert read_loras(folder) == (
        FoundLora(first, first, 1, 10, is_missing=True),
        FoundLora(step, step, 0, 15, is_missing=False),
        FoundLora(second, second, 2, 20, is_missing=False),
    )
    assert [lora.step for lora in read_loras(folder, _records(LoraWritten(str(first), 1, 10)))] == [10]


def test_the_newest_lora_is_the_latest_step_that_still_exists(folder: RunFolder, tmp_path: Path) -> None:
    assert newest_lora(folder) == tmp_path / "zok-000002.safetensors"
    (tmp_path / "zok-000002.safetensors").unlink()
    assert newest_lora(folder) == tmp_path / "zok-step00000015.safetensors"
    (tmp_path / "zok-step00000015.safetensors").unlink()
    assert newest_lora(folder) is None


def test_the_files_of_a_moved_run_are_found_beside_it(folder: RunFolder, tmp_path: Path) -> None:
    folder.identity.write_text(f'{{"roots": ["{folder.root.as_posix()}"]}}', encoding="utf-8")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (folder.root, *tmp_path.glob("*.safetensors")):
        path.rename(moved / path.name)
    lora = read_loras(RunFolder(moved / "run"))[-1]
    assert (lora.path, lora.recorded) == (moved / "zok-000002.safetensors", tmp_path / "zok-000002.safetensors")
    history = read_history(RunFolder(moved / "run"), 20)
    assert history.epoch_files() == {2: moved / "zok-000002.safetensors"}
