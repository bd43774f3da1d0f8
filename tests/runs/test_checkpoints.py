"""What a run saves and removes: LoRA files with their cards, training states, and what happens when a disk is full."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.events import Event, LoraRemoved, LoraWritten, Noted, StateChanged, StateSaved
from lib_lora_train.runs import checkpoints
from lib_lora_train.runs.checkpoints import (
    save_due_step_lora,
    save_epoch_lora,
    save_recent_state,
    save_step_lora,
    save_training_state,
)
from lib_lora_train.runs.run_context import RunContext
from lib_lora_train.runs.state_clock import StateClock
from lib_lora_train.training.training_run import Training
from lib_lora_train.training.training_state import TrainState, write_state
from tests.stand_ins.run_parts import only, run_context
from tests.stand_ins.training_parts import shared_model as model

Made = Callable[..., tuple[RunContext, Training]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Makes the test's run; its adapter is removed afterwards."""
    monkeypatch.setattr("os.fsync", lambda _: None)  # which takes longer than all the rest
    made: list[RunContext] = []

    def make_run(**values: Any) -> tuple[RunContext, Training]:
        run, training = run_context(model(), tmp_path, rank=1, **values)
        made.append(run)
        return run, training

    yield make_run
    for run in made:
        run.adapter.remove()


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def stems(run: RunContext, ending: str = "safetensors") -> list[str]:
    return sorted(path.stem for path in run.lora_dir.glob(f"*.{ending}"))


def states(run: RunContext) -> list[str]:
    return sorted(path.stem for path in run.folder.states.glob("*.pt"))


def save_epochs(run: RunContext, count: int) -> list[Event]:
    return [event for epoch in range(1, count + 1) for event in save_epoch_lora(run, epoch, 4 * epoch)]


@pytest.mark.parametrize(("webui", "version"), [("Forge Neo 2.26", "sd"), ("Forge", "SD1"), ("stand-alone", "SD1")])
def test_the_card_names_the_kind_of_model_as_the_webui_does(make: Made, webui: str, version: str) -> None:
    """So that Forge Neo, whose kinds are its presets, shows the LoRA with the right one."""
    run, _ = make()
    run.host.name = webui
    save_epochs(run, 1)
    assert json.loads((run.lora_dir / "test-000001.json").read_text(encoding="utf-8"))["sd version"] == version


# --- LoRA files -----------------------------------------------------------------------------------


def test_of_the_files_of_epochs_the_last_ones_are_kept_and_those_of_steps_are_left(make: Made) -> None:
    run, training = make(keep_last_epochs=2)
    training.step = 3
    events = [*save_step_lora(run, training), *save_epochs(run, 4)]
    removed = [Path(event.path).stem for event in only(events, LoraRemoved)]
    assert removed == ["test-000001", "test-000002"]
    assert stems(run) == ["test-000003", "test-000004", "test-step00000003"]
    assert [file.stem for file in run.history.files] == ["test-step00000003", "test-000003", "test-000004"]


@pytest.mark.parametrize(("keep", "left"), [(0, [2, 4, 6]), (1, [6]), (3, [2, 4, 6])])
def test_of_the_files_of_due_steps_as_many_are_kept_as_the_settings_say(keep: int, left: list[int], make: Made) -> None:
    """0 keeps all of them."""
    run, training = make(keep_last_step_files=keep, keep_last_epochs=1)
    for step in (2, 4, 6):
        training.step = step
        list(save_due_step_lora(run, training))
    assert stems(run) == [f"test-step{step:08}" for step in left]


def test_a_step_is_saved_once_whatever_asks_for_it(make: Made) -> None:
    run, training = make()
    training.step = 2
    assert len(only(list(save_step_lora(run, training)), LoraWritten)) == 1
    assert list(save_step_lora(run, training)) == []
    training.step = 4
    list(save_epoch_lora(run, 1, 4))
    assert list(save_step_lora(run, training)) == [], "the epoch's file has this step"
    assert stems(run) == ["test-000001", "test-step00000002"]


def test_a_removed_file_takes_its_card_with_it_unless_that_was_changed(make: Made) -> None:
    run, _ = make(keep_last_epochs=1)
    list(save_epoch_lora(run, 1, 4))
    list(save_epoch_lora(run, 2, 8))
    assert stems(run, "json") == ["test-000002"]
    card = run.lora_dir / "test-000002.json"
    os.utime(card, ns=(1, 1))
    image = run.lora_dir / "test-000002.png"
    image.write_bytes(b"the user's own")
    list(save_epoch_lora(run, 3, 12))
    assert stems(run) == ["test-000003"] and card.exists() and image.exists()


def test_a_removed_file_that_is_gone_already_stops_nothing(make: Made) -> None:
    run, _ = make(keep_last_epochs=1)
    list(save_epoch_lora(run, 1, 4))
    (run.lora_dir / "test-000001.safetensors").unlink()
    assert len(only(list(save_epoch_lora(run, 2, 8)), LoraRemoved)) == 1
    assert stems(run) == ["test-000002"]


def test_the_host_lists_every_file_that_is_written_or_removed(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make(keep_last_epochs=1)
    listed: list[list[str]] = []
    monkeypatch.setattr(run.host, "refresh_loras", lambda: listed.append(stems(run)))
    save_epochs(run, 2)
    assert listed == [["test-000001"], ["test-000001", "test-000002"], ["test-000002"]]


def test_a_file_says_when_in_the_run_it_was_saved(make: Made) -> None:
    run, training = make()
    training.step = 5
    list(save_step_lora(run, training))
    metadata = read_adapter(run.lora_dir / "test-step00000005.safetensors").metadata
    assert (metadata["ss_epoch"], metadata["ss_steps"]) == ("2", "5")
    assert metadata["ss_output_name"] == "test-step00000005" and metadata["ss_session_id"] == "session"


@pytest.mark.parametrize(
    ("factor", "precision", "text"),
    [
        (1.0, "fp16", ""),
        (1e-9, "fp16", "100.0% of the matrices lost"),
        (1e-9, "bf16", ""),
        (1e-9, "fp32", ""),
        (1e9, "fp16", "100.0% of the values overflowed"),
    ],
)
def test_a_precision_that_loses_much_is_a_warning(factor: float, precision: str, text: str, make: Made) -> None:
    run, training = make(save_precision=precision)
    with torch.no_grad():
        for parameter in training.parameters:
            parameter.copy_(factor * (1 + torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1))))
    warnings = [event.message for event in only(list(save_epoch_lora(run, 1, 4)), Noted)]
    assert len(warnings) == bool(text) and text in "".join(warnings)


# --- cards ----------------------------------------------------------------------------------------


def test_a_card_says_how_far_the_run_was_and_can_be_turned_off(make: Made) -> None:
    run, _ = make()
    run.history.losses[1] = 0.125
    list(save_epoch_lora(run, 1, 4))
    card = json.loads((run.lora_dir / "test-000001.json").read_text(encoding="utf-8"))
    assert card["notes"].startswith("epoch 1 of 2, step 4, loss 0.1250, trained on tiny-sd1")
    assert list(run.cards) == [run.lora_dir / "test-000001.json"]
    run.config = run.config.replace(write_card=False)
    list(save_epoch_lora(run, 2, 8))
    assert stems(run, "json") == ["test-000001"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(28, "No space left on device"), "No space left on device"), (MemoryError(), "the memory is full")],
)
def test_a_card_that_cannot_be_written_is_a_warning(
    error: Exception, reason: str, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = make()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoints, "write_card", fail)
    events = list(save_epoch_lora(run, 1, 4))
    (warning,) = only(events, Noted)
    assert warning.level == "warning" and warning.where == str(run.lora_dir / "test-000001.safetensors")
    assert warning.message == f"The card could not be written: {reason}. The LoRA file itself is complete."
    assert len(only(events, LoraWritten)) == 1 and run.cards == {}


# --- training states ------------------------------------------------------------------------------


def test_as_many_states_of_epochs_are_kept_as_the_settings_say_and_none_by_time_beside_a_newer_one(make: Made) -> None:
    run, training = make(keep_last_states=2)
    clock = Clock()
    run.state_clock = StateClock(clock)
    training.step, clock.time = 3, 60.0
    assert len(only(list(save_recent_state(run, training)), StateSaved)) == 0 and states(run) == ["recent-00000003"]
    for step in (4, 8, 12):
        training.step = step
        assert list(save_training_state(run, training)) == [StateSaved(str(run.folder.state_path(step)), step)]
    assert states(run) == ["step-00000008", "step-00000012"] and run.saved_state_step == 12


def test_a_step_has_one_state_and_none_that_would_not_resume_exactly(make: Made) -> None:
    run, training = make()
    training.step = 4
    run.saved_state_step = 4
    assert list(save_training_state(run, training)) == []
    training.step, training.is_resumable = 5, False
    assert list(save_training_state(run, training)) == []
    training.is_resumable = True
    run.config = run.config.replace(save_state=False)
    assert list(save_training_state(run, training)) == [] and states(run) == []


def test_a_state_by_time_replaces_the_one_before_it_and_leaves_those_of_epochs(make: Made) -> None:
    run, training = make(save_state_every_n_steps=2)
    clock = Clock()
    run.state_clock = StateClock(clock)
    training.step = 2
    list(save_training_state(run, training))
    for step, time, expected in [(3, 49, []), (3, 50, ["recent-00000003"]), (5, 100, ["recent-00000005"])]:
        training.step, clock.time = step, time
        assert list(save_recent_state(run, training)) == []
        assert states(run) == [*expected, "step-00000002"]


@pytest.mark.parametrize(
    ("step", "values", "saved_step", "is_resumable"),
    [
        (4, {}, 0, True),
        (6, {"max_steps": 6}, 0, True),
        (3, {}, 3, True),
        (3, {"save_state": False}, 0, True),
        (3, {}, 0, False),
    ],
)
def test_no_state_by_time_where_another_one_follows_or_none_is_wanted(
    step: int, values: dict[str, Any], saved_step: int, is_resumable: bool, make: Made
) -> None:
    """Steps 4 and 6 end an epoch and the run, which has its own state."""
    run, training = make(**values)
    clock = Clock()
    run.state_clock = StateClock(clock)
    clock.time = 1000.0
    training.step, training.is_resumable, run.saved_state_step = step, is_resumable, saved_step
    assert list(save_recent_state(run, training)) == [] and states(run) == []


def test_a_state_that_takes_long_to_save_is_saved_more_rarely(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took 2 seconds, so that the next one is due after 200; the time to save that of an epoch counts too."""
    run, training = make()
    clock = Clock()
    run.state_clock = StateClock(clock)

    def write_slowly(path: Path, state: TrainState) -> None:
        clock.time += 2.0
        write_state(path, state)

    monkeypatch.setattr(checkpoints, "write_state", write_slowly)
    training.step = 4
    list(save_training_state(run, training))
    training.step = 5
    for time, expected in [(201.0, []), (202.0, ["recent-00000005"])]:
        clock.time = time
        list(save_recent_state(run, training))
        assert states(run) == [*expected, "step-00000004"]


# --- what cannot be written -----------------------------------------------------------------------


def failing(count: int, monkeypatch: pytest.MonkeyPatch, name: str) -> list[OutputError]:
    """The first `count` calls of the function of `checkpoints` fail as on a full disk; the errors to come."""
    work, failures = getattr(checkpoints, name), [OutputError("The disk is full.")] * count

    def fail(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return work(*arguments, **options)

    monkeypatch.setattr(checkpoints, name, fail)
    return failures


def answered(run: RunContext, events: Iterator[Event], answer: Callable[[], None]) -> list[Event]:
    """The events, and what somebody does in each pause."""
    found = []
    for event in events:
        found.append(event)
        if isinstance(event, StateChanged) and event.state == "paused":
            assert run.control.is_paused
            answer()
    return found


def test_a_lora_file_is_tried_again_after_each_pause(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make(control=Control(is_attended=True))
    failing(2, monkeypatch, "write_adapter")
    events = answered(run, save_epoch_lora(run, 1, 4), run.control.resume)
    assert [event.state for event in only(events, StateChanged)] == ["paused", "running"] * 2
    assert "The disk is full. The run is paused" in only(events, StateChanged)[0].message
    assert stems(run) == ["test-000001"]


@pytest.mark.parametrize("is_attended", [True, False])
def test_a_lora_file_that_nobody_waits_for_is_an_error(
    is_attended: bool, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line at once, on the page if the run is stopped in the pause, and at once if it was before."""
    run, _ = make(control=Control(is_attended=is_attended))
    failures = failing(9, monkeypatch, "write_adapter")
    with pytest.raises(OutputError, match="The disk is full"):
        answered(run, save_epoch_lora(run, 1, 4), run.control.stop)
    assert run.control.is_stopped == is_attended and len(failures) == 8, "a stopped run does not try again"
    run.control.stop()
    with pytest.raises(OutputError, match="The disk is full"):
        answered(run, save_epoch_lora(run, 1, 4), run.control.resume)
    assert stems(run) == [] and run.saved_lora_step == 0


def test_a_state_is_tried_again_after_the_first_pause_and_is_a_warning_from_then_on(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, training = make(control=Control(is_attended=True))
    training.step = 4
    with monkeypatch.context() as patch:
        failing(1, patch, "write_state")
        events = answered(run, save_training_state(run, training), run.control.resume)
    assert [type(event) for event in events] == [StateChanged, StateChanged, StateSaved] and len(states(run)) == 1
    failing(9, monkeypatch, "write_state")
    training.step = 8
    (warning,) = list(save_training_state(run, training))
    assert isinstance(warning, Noted) and warning.level == "warning"
    assert warning.message == "The disk is full. The run can only be resumed from an earlier step."
    assert run.saved_state_step == 4


@pytest.mark.parametrize("is_attended", [True, False])
def test_a_state_that_cannot_be_written_stops_no_run(
    is_attended: bool, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, training = make(control=Control(is_attended=is_attended))
    failing(9, monkeypatch, "write_state")
    training.step = 4
    events = answered(run, save_training_state(run, training), run.control.resume)
    assert [event.level for event in only(events, Noted)] == ["warning"] and states(run) == []


def test_a_state_by_time_that_cannot_be_written_is_one_warning_and_no_pause(
    make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, training = make(control=Control(is_attended=True))
    clock = Clock()
    run.state_clock = StateClock(clock)
    failing(2, monkeypatch, "write_state")
    found: list[list[Event]] = []
    for step in (1, 2, 3):
        training.step, clock.time = step, clock.time + 60.0
        found.append(list(save_recent_state(run, training)))
    assert [len(events) for events in found] == [1, 0, 0] and isinstance(found[0][0], Noted)
    assert states(run) == ["recent-00000003"]
