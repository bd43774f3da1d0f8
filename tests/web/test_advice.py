"""The advice of a past run on the page: testing it in the background, showing it, and writing it to the card."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import HostError, LoraTrainError, OutputError
from lib_lora_train.core.events import (
    Advised,
    EpochDone,
    Event,
    LoraWritten,
    PhaseStarted,
    Resumed,
    StateChanged,
    StrengthTested,
)
from lib_lora_train.formats.lora_card import recommend
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.measures import advice as run_advice
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.runner import Runner
from lib_lora_train.web.advice import AdviceSession, read_advice

_ADVICE = Advised(2, 1.25, True, ("Likeness is 80%.", "At strength 1 it is 70%."), ("Train longer.",))
_TRIAL = StrengthTested(2, 1.25, (0.8,), (0.1,), 1.1)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """With one finished run of two epochs, whose files exist."""
    loras = [tmp_path / "Lora" / f"zorp-00000{epoch}.safetensors" for epoch in (1, 2)]
    loras[0].parent.mkdir()
    for path in loras:
        path.write_bytes(b"weights")

    def events(*_: Any, **__: Any) -> Iterator[Event]:
        for epoch, path in enumerate(loras, 1):
            yield EpochDone(epoch, epoch * 10, 0.1)
            yield LoraWritten(str(path), epoch, epoch * 10)
        yield StateChanged("finished")

    host = StandaloneHost(None, None, loras[0].parent, "cpu")
    made = Runner(host, tmp_path / "outputs", make_events=events)
    made.start(TrainConfig(output_name="zorp"))
    made.wait(30)
    return made


def _session(runner: Runner) -> tuple[AdviceSession, str]:
    run = str(runner.status()["run"])
    return AdviceSession(runner, lambda values: RunFolder(runner.home / str(values["run"]))), run


def _test_with(monkeypatch: pytest.MonkeyPatch, *events: Event) -> None:
    """The strength test that the session imports makes these events until it is stopped."""

    def work(_folder: RunFolder, _host: object, control: Control) -> Iterator[Event]:
        for event in events:
            yield event
            if control.is_stopped:
                raise RunStoppedError

    monkeypatch.setattr(run_advice, "advise_past_run", work)


def _events_of(runner: Runner) -> list[dict[str, Any]]:
    return [dict(event) for event in runner.status()["events"]]


def test_the_trials_and_the_advice_are_in_the_log_and_in_the_current_run(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, run = _session(runner)
    _test_with(monkeypatch, PhaseStarted("strengths"), _TRIAL, _ADVICE)
    session.start({"run": run})
    session.task.wait(30)
    assert session.status({})["state"] == "done"
    kinds = [event["kind"] for event in _events_of(runner)]
    assert kinds[-2:] == ["StrengthTested", "Advised"] and kinds.count("StateChanged") == 1
    found = read_advice(RunFolder(runner.home / run))
    assert found and (found["epoch"], found["strength"], found["is_sure"]) == (2, 1.25, True)


def test_a_stop_keeps_the_trials(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    session, run = _session(runner)
    _test_with(monkeypatch, _TRIAL, _ADVICE)
    monkeypatch.setattr(session.task, "is_stopped", lambda: True)
    session.start({"run": run})
    session.task.wait(30)
    assert [event["kind"] for event in _events_of(runner)][-1] == "StrengthTested"
    assert read_advice(RunFolder(runner.home / run)) is None


def test_what_cannot_be_tested_is_a_sentence(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    session, run = _session(runner)

    def fail(*_: object) -> Iterator[Event]:
        yield from ()
        raise HostError("zorp has no samples of its epochs to compare.")

    monkeypatch.setattr(run_advice, "advise_past_run", fail)
    session.start({"run": run})
    session.task.wait(30)
    assert session.status({})["state"] == "failed" and "no samples" in session.status({})["message"]


def test_it_waits_for_a_training_to_end(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    session, run = _session(runner)
    monkeypatch.setattr(type(runner), "active_run", property(lambda _: "other"))
    with pytest.raises(HostError, match="A training is running"):
        session.start({"run": run})


@pytest.mark.parametrize("later", [Resumed(10), EpochDone(3, 30, 0.1)])
def test_a_run_that_went_on_after_its_advice_has_none(runner: Runner, later: Event) -> None:
    run = str(runner.status()["run"])
    runner.note(run, _ADVICE)
    assert read_advice(RunFolder(runner.home / run))
    runner.note(run, later)
    assert read_advice(RunFolder(runner.home / run)) is None


# --- the card ------------------------------------------------------------------------------------


def test_the_advice_goes_into_the_card_of_its_epoch(runner: Runner) -> None:
    session, run = _session(runner)
    runner.note(run, _ADVICE)
    sample = RunFolder(runner.home / run).strength_sample(2, 1.25, 1)
    sample.parent.mkdir()
    Image.new("RGB", (8, 8), "red").save(sample)
    assert session.write_card({"run": run}) == {"name": "zorp-000002"}
    card = runner.host.lora_dir / "zorp-000002.json"
    values = json.loads(card.read_text(encoding="utf-8"))
    assert values["preferred weight"] == 1.25
    assert values["notes"] == "Recommended strength 1.25. Likeness is 80%. At strength 1 it is 70%."
    assert card.with_suffix(".png").read_bytes() == sample.read_bytes()
    assert not (runner.host.lora_dir / "zorp-000001.json").exists()


def test_without_an_advice_there_is_nothing_to_write(runner: Runner) -> None:
    session, run = _session(runner)
    with pytest.raises(HostError, match="no file of a recommended epoch"):
        session.write_card({"run": run})
    runner.note(run, Advised(0, 1.0, True, ("None is good.",)))
    with pytest.raises(HostError, match="no file of a recommended epoch"):
        session.write_card({"run": run})


def test_a_card_keeps_everything_else_and_a_newer_recommendation_replaces_the_older(tmp_path: Path) -> None:
    lora, preview = tmp_path / "a.safetensors", tmp_path / "sample.png"
    lora.with_suffix(".json").write_text('{"notes": "epoch 2", "activation text": "zorp", "mine": 1}', encoding="utf-8")
    lora.with_suffix(".png").write_bytes(b"the user's own")
    preview.write_bytes(b"ours")
    for strength in (0.8, 1.25):
        recommend(lora, strength=strength, reasons="It is best.", preview=preview)
    assert json.loads(lora.with_suffix(".json").read_text(encoding="utf-8")) == {
        "notes": "epoch 2\n\nRecommended strength 1.25. It is best.",
        "activation text": "zorp",
        "mine": 1,
        "preferred weight": 1.25,
    }
    assert lora.with_suffix(".png").read_bytes() == b"the user's own"


@pytest.mark.parametrize("has_card", [True, False])
def test_a_card_on_a_full_disk_is_as_it_was(runner: Runner, monkeypatch: pytest.MonkeyPatch, has_card: bool) -> None:
    session, run = _session(runner)
    runner.note(run, _ADVICE)
    sample = RunFolder(runner.home / run).strength_sample(2, 1.25, 1)
    sample.parent.mkdir()
    sample.write_bytes(b"an image")
    card = runner.host.lora_dir / "zorp-000002.json"
    if has_card:
        card.write_text("{}", encoding="utf-8")
    before = sorted(path.name for path in card.parent.iterdir())

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"zorp-000002\.json cannot be written: No space left"):
        session.write_card({"run": run})
    assert sorted(path.name for path in card.parent.iterdir()) == before
    assert not has_card or card.read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_file_that_is_no_card_is_kept(tmp_path: Path, content: str) -> None:
    lora = tmp_path / "a.safetensors"
    lora.with_suffix(".json").write_text(content, encoding="utf-8")
    with pytest.raises(LoraTrainError, match=r"a\.json"):
        recommend(lora, strength=1.0, reasons="", preview=tmp_path / "none.png")
    assert lora.with_suffix(".json").read_text(encoding="utf-8") == content
