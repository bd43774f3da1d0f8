"""The strength test and the advice at the end of a run and of a past one, with real events and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.adapters.inject import has_adapter
from lib_lora_train.cli.main import main
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import Advised, Event, Noted, SampleDrawn, StrengthTested
from lib_lora_train.evaluation import strength_search
from lib_lora_train.evaluation.advisor import advise
from lib_lora_train.evaluation.strength_search import next_place
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.measures.advice import advise_past_run
from lib_lora_train.runs.records.event_log import EventLog, log_record
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import read_records, trial_from
from lib_lora_train.runs.trainer import run_training
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, ending, only, small_run_setup

ALL: dict[str, Any] = {
    "test_strengths": True,
    "learning_rate": 3e-2,
    "sample_prompts": ("zorp, red background --s 2 --l 3", "fox --s 2 --l 3"),
}


@pytest.fixture(autouse=True)
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two drawn rows show what eight would."""
    monkeypatch.setattr(strength_search, "MAX_TRIALS", 2)


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def small_run(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> RunSetup:
    return small_run_setup(shared_host, demo_dir, tmp_path)


def _run(setup: RunSetup, control: Control | None = None, **values: Any) -> list[Event]:
    """The events of a run, which are in its log too."""
    log, events = EventLog(setup.folder.log), []
    config = setup.config.replace(**values)
    for event in run_training(config, setup.host, folder=setup.folder, control=control or Control()):
        log.append(log_record(event))
        events.append(event)
    return events


def test_a_run_ends_with_its_trials_and_an_advice_that_follows_from_them(small_run: RunSetup) -> None:
    events = _run(small_run, **ALL)
    assert ending(events) == "finished"
    tested = only(events, StrengthTested)
    assert [(one.epoch, one.strength) for one in tested[:2]] == [(1, 1.0), (2, 1.0)]
    assert len(tested) > 2 and all(len(one.likeness) == len(one.change) == 1 for one in tested)
    for one in tested:
        assert all(Path(image).is_file() for image in one.images) and bool(one.images) == (one.strength != 1.0)
    trials = [trial_from(log_record(one)) for one in tested]
    assert next_place(trials, [1, 2]) is None
    [advised] = only(events, Advised)
    found = advise(trials, {})
    assert found and (advised.epoch, advised.strength, advised.reasons) == (found.epoch, found.strength, found.reasons)
    other = next(one for one in tested if one.images)
    drawn = Image.open(other.images[0])
    assert drawn.tobytes() != Image.open(small_run.folder.sample(other.epoch, 1)).tobytes()
    assert f"<lora:test-{other.epoch:06}:{other.strength:g}>" in drawn.info["parameters"]
    assert not has_adapter(small_run.host.load_model(small_run.config))


def test_it_can_be_turned_off_and_a_run_without_samples_has_none(small_run: RunSetup) -> None:
    assert not only(_run(small_run, **{**ALL, "test_strengths": False}), StrengthTested)
    assert not only(_run(small_run, **{**ALL, **NO_SAMPLES}), StrengthTested)


def test_a_stop_ends_it_and_the_past_run_is_tested_on_from_there(small_run: RunSetup) -> None:
    control, events = Control(), []
    for event in run_training(
        small_run.config.replace(**ALL), small_run.host, folder=small_run.folder, control=control
    ):
        EventLog(small_run.folder.log).append(log_record(event))
        events.append(event)
        if isinstance(event, StrengthTested) and event.images:
            control.stop()
    before = only(events, StrengthTested)
    assert ending(events) == "stopped" and len([one for one in before if one.images]) == 1
    assert not only(events, Advised)
    drawn = {path: path.stat().st_mtime_ns for path in (small_run.folder.root / "strengths").glob("*.png")}
    later = list(advise_past_run(small_run.folder, small_run.host, Control()))
    known = {(one.epoch, one.strength) for one in before}
    assert not known & {(one.epoch, one.strength) for one in only(later, StrengthTested)}
    assert len(only(later, Advised)) == 1 and not only(later, SampleDrawn)
    assert all(path.stat().st_mtime_ns == changed for path, changed in drawn.items())


def test_a_past_run_gets_the_same_advice_as_a_new_one(small_run: RunSetup) -> None:
    plain = {**ALL, "test_strengths": False}
    _run(small_run, **plain)
    later = list(advise_past_run(small_run.folder, small_run.host, Control()))
    again = small_run_setup_again(small_run)
    assert only(later, Advised) == only(_run(again, **ALL), Advised)


def small_run_setup_again(setup: RunSetup) -> RunSetup:
    """The same run in another folder, with its own LoRA files."""
    setup.host.lora_dir = setup.host.lora_dir.parent / "Lora-2"
    folder = RunFolder(setup.folder.root.parent / "again")
    folder.samples.mkdir(parents=True)
    return RunSetup(setup.config, setup.host, folder)


def test_a_past_run_without_samples_says_what_is_missing(small_run: RunSetup) -> None:
    from lib_lora_train.core.errors import HostError

    _run(small_run, **NO_SAMPLES)
    with pytest.raises(HostError, match="has no samples of its epochs to compare"):
        list(advise_past_run(small_run.folder, small_run.host, Control()))


def test_trials_of_epochs_that_are_trained_again_are_void(small_run: RunSetup) -> None:
    records: list[dict[str, Any]] = [
        {"kind": "EpochDone", "epoch": 1, "step": 3, "mean_loss": 0.1},
        {"kind": "EpochDone", "epoch": 2, "step": 6, "mean_loss": 0.1},
        *(
            {
                "kind": "StrengthTested",
                "epoch": epoch,
                "strength": 1.0,
                "likeness": [0.5],
                "change": [],
                "roughness": 1.0,
            }
            for epoch in (1, 2)
        ),
        {"kind": "Resumed", "step": 4},
    ]
    assert [trial.epoch for trial in read_records(records).trials] == [1]


def test_samples_that_cannot_be_drawn_are_a_warning_and_the_run_finishes(
    small_run: RunSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lib_lora_train.core.errors import OutputError
    from lib_lora_train.runs.measures import strength_test

    def full(*_: object) -> None:
        raise OutputError("The disk is full. Free some space.")

    monkeypatch.setattr(strength_test, "write_image", full)
    events = _run(small_run, **ALL)
    assert ending(events) == "finished"
    [note] = [one for one in only(events, Noted) if one.where == "test_strengths"]
    assert "The disk is full" in note.message and "all files are saved" in note.message
    assert len(only(events, Advised)) == 1  # from the trials at strength 1


def test_the_command_advises_and_writes_to_the_log(small_run: RunSetup, capsys: pytest.CaptureFixture[str]) -> None:
    _run(small_run, **{**ALL, "test_strengths": False})
    assert main(["advise", str(small_run.folder.root), "--cpu"]) == 0
    shown = capsys.readouterr().out
    assert "Epoch 1 at strength 1: likeness" in shown
    kinds = [json.loads(line)["kind"] for line in small_run.folder.log.read_text().splitlines()]
    assert kinds[-1] == "Advised" and "StrengthTested" in kinds
    last_state = [json.loads(line) for line in small_run.folder.log.read_text().splitlines() if "StateChanged" in line]
    assert last_state[-1]["state"] == "finished"


def test_the_command_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(tmp_path)]) == 2
    assert "is not a run. Give" in capsys.readouterr().err
