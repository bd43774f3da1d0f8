"""At which moments of the training a run saves, draws, measures and ends: the loop's events stand for the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ModelUnavailableError, TrainingError
from lib_lora_train.core.events import (
    EpochDone,
    Event,
    LoraWritten,
    Noted,
    PhaseStarted,
    Progress,
    SampleDrawn,
    StateChanged,
    StateSaved,
    StepDone,
    Workload,
)
from lib_lora_train.core.measures import VALIDATION_LOSS
from lib_lora_train.runs import trainer
from lib_lora_train.runs.measures.epoch_measures import RunMeasures
from lib_lora_train.runs.records.history import SavedLora
from lib_lora_train.runs.run_context import RunContext
from lib_lora_train.training.training_run import Training
from tests.stand_ins.run_parts import only, run_context
from tests.stand_ins.training_parts import shared_model as model

DRAWN = {"sample_prompts": ("zok",), "sample_every_n_epochs": 1}


class Moments:
    """A run of two epochs of four steps whose loop only counts them, and whose samples are only named."""

    def __init__(self, run: RunContext, training: Training) -> None:
        self.run, self.training = run, training
        self.during: Callable[[Event], None] = lambda _: None
        self.error: Exception | None = None

    def loop(self, training: Training, *, host: object, control: Control) -> Iterator[Event]:
        """As in `training.loop`: a step's events, one turn for each step, then the epoch's."""
        plan = training.plan
        while training.step < plan.total_steps:
            if control.is_paused:
                yield StateChanged("paused")
                control.resume()
                yield StateChanged("running")
            if control.is_stopped:
                yield StateChanged("stopping")
                return
            epoch = training.epoch
            training.step += 1
            if self.error and training.step == 3:
                raise self.error
            yield StepDone(training.step, epoch, 0.5, {}, 1.0, 0.1)
            yield Progress("train", training.step, plan.total_steps)
            if training.step % plan.steps_per_epoch == 0 or training.step == plan.total_steps:
                yield EpochDone(epoch, training.step, 0.25 * epoch)

    def draw(self, run: RunContext, epoch: int, step: int = 0) -> Iterator[Event]:
        yield SampleDrawn("", epoch, "zok", 1, step)

    def train(self) -> list[Event]:
        found: list[Event] = []
        for event in trainer._train(self.run, self.training, RunMeasures()):
            found.append(event)
            self.during(event)
        return found

    def resume(self, step: int) -> list[Event]:
        """What a run that resumes from a step does before the next one."""
        self.run.state = self.training.state()
        self.training.step = step
        return list(trainer._finish_interrupted_step(self.run, self.training))


Made = Callable[..., Moments]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Makes the test's run; its adapter is removed afterwards."""
    monkeypatch.setattr("os.fsync", lambda _: None)  # which takes longer than all the rest
    made: list[Moments] = []

    def make_run(**values: Any) -> Moments:
        moments = Moments(*run_context(model(), tmp_path, rank=1, **values))
        monkeypatch.setattr(trainer, "train", moments.loop)
        monkeypatch.setattr(trainer, "generate_sample_row", moments.draw)
        made.append(moments)
        return moments

    yield make_run
    for moments in made:
        moments.run.adapter.remove()


def stems(events: list[Event]) -> list[str]:
    return [Path(event.path).stem.removeprefix("test-") for event in only(events, LoraWritten)]


def states(events: list[Event]) -> list[int]:
    return [event.step for event in only(events, StateSaved)]


def drawn(events: list[Event]) -> list[tuple[int, int]]:
    """(epoch, step within it) of the samples."""
    return [(event.epoch, event.step) for event in only(events, SampleDrawn)]


def at_step(step: int, action: Callable[[], None]) -> Callable[[Event], None]:
    """Does something when this step is reported."""
    return lambda event: action() if isinstance(event, StepDone) and event.step == step else None


# --- epochs and due steps -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "files"),
    [
        ({}, ["000001", "000002", "000003", "000004"]),
        ({"save_every_n_epochs": 3}, ["000003", "000004"]),
        ({"save_from_epoch": 3}, ["000003", "000004"]),
        ({"save_from_epoch": 9}, ["000004"]),
    ],
)
def test_files_of_epochs_are_saved_as_the_settings_say_and_that_of_the_last_one_always(
    values: dict[str, Any], files: list[str], make: Made
) -> None:
    events = make(epochs=4, **values).train()
    assert stems(events) == files
    assert states(events) == [4, 8, 12, 16]


@pytest.mark.parametrize(("every", "steps"), [(3, [3, 6]), (2, [2, 6]), (4, []), (1, [1, 2, 3, 5, 6, 7])])
def test_steps_that_end_an_epoch_have_the_epochs_file_state_and_samples_instead_of_their_own(
    every: int, steps: list[int], make: Made
) -> None:
    names = ("save_every_n_steps", "save_state_every_n_steps", "sample_every_n_steps")
    events = make(**dict.fromkeys(names, every), keep_last_states=9, **DRAWN).train()
    assert stems(events) == sorted(
        [*(f"step{step:08}" for step in steps), "000001", "000002"],
        key=lambda name: int(name[4:]) if "step" in name else 4 * int(name),
    )
    assert states(events) == sorted([*steps, 4, 8])
    assert [step for _, step in drawn(events) if step] == steps
    assert [epoch for epoch, step in drawn(events) if not step] == [1, 2]


def test_the_last_step_of_a_run_that_ends_within_an_epoch_ends_it(make: Made) -> None:
    events = make(max_steps=6, save_every_n_steps=3, save_state_every_n_steps=3).train()
    assert stems(events) == ["step00000003", "000001", "000002"] and states(events) == [3, 4, 6]


def test_epochs_without_samples_leave_their_last_step_to_those_of_steps(make: Made) -> None:
    events = make(sample_prompts=("zok",), sample_every_n_epochs=2, sample_every_n_steps=2, epochs=3).train()
    assert drawn(events) == [(1, 2), (1, 4), (2, 6), (2, 0), (3, 10), (3, 0)]


def test_without_prompts_no_step_is_drawn(make: Made) -> None:
    assert drawn(make(sample_every_n_steps=2).train()) == []


def test_the_losses_of_epochs_are_remembered(make: Made) -> None:
    moments = make()
    moments.train()
    assert moments.run.history.losses == {1: 0.25, 2: 0.5}


def test_in_the_webui_epochs_without_a_file_are_not_drawn_and_steps_are_saved_first(make: Made) -> None:
    moments = make(epochs=4, save_every_n_epochs=2, sample_every_n_steps=3, **DRAWN)
    moments.run.txt2img = object()  # type: ignore[assignment]
    events = moments.train()
    kept = [event for event in events if isinstance(event, (LoraWritten, SampleDrawn))]
    found = [Path(one.path).stem[5:] if isinstance(one, LoraWritten) else (one.epoch, one.step) for one in kept]
    steps = [("step00000003", (1, 3)), ("step00000006", (2, 6))]
    assert found[:6] == [*steps[0], *steps[1], "000002", (2, 0)]
    assert drawn(events) == [(1, 3), (2, 6), (2, 0), (3, 9), (4, 15), (4, 0)]


# --- requests, pauses and endings -----------------------------------------------------------------


def test_what_is_requested_is_done_once_after_the_step(make: Made) -> None:
    moments = make(save_every_n_epochs=9)
    control = moments.run.control

    def request() -> None:
        control.save_now()
        control.sample_now()

    moments.during = at_step(2, request)
    events = moments.train()
    assert stems(events) == ["step00000002", "000002"] and drawn(events) == [(1, 2)]
    assert not control.has_requests


def test_a_pause_saves_the_state_and_nothing_else(make: Made) -> None:
    moments = make()
    moments.during = at_step(3, moments.run.control.pause)
    events = moments.train()
    assert states(events) == [3, 4, 8] and stems(events) == ["000001", "000002"]


@pytest.mark.parametrize(("ending", "files", "saved"), [("stop", ["step00000002"], [2]), ("drop", [], [])])
def test_stop_saves_the_step_and_drop_does_not(ending: str, files: list[str], saved: list[int], make: Made) -> None:
    moments = make()
    moments.during = at_step(2, getattr(moments.run.control, ending))
    events = moments.train()
    assert stems(events) == files and states(events) == saved


@pytest.mark.parametrize("error", [TrainingError("The loss is NaN."), ModelUnavailableError("Another one is loaded.")])
def test_a_run_that_fails_saves_its_last_step_first(error: Exception, make: Made) -> None:
    moments, events = make(), list[Event]()
    moments.error, moments.during = error, events.append
    with pytest.raises(type(error)):
        moments.train()
    assert stems(events) == ["step00000003"] and states(events) == [3]


@pytest.mark.parametrize(
    ("patience", "epochs", "files"),
    [(0, 6, ["000004", "000006"]), (1, 3, ["000003"]), (2, 4, ["000004"]), (9, 6, ["000004", "000006"])],
)
def test_a_run_that_ends_early_says_so_and_has_the_file_of_its_last_epoch(
    patience: int, epochs: int, files: list[str], make: Made
) -> None:
    """The second of six epochs is the best; every fourth is saved."""
    moments = make(epochs=6, early_stopping_epochs=patience, save_every_n_epochs=4)
    losses = dict(enumerate([0.9, 0.5, 0.2, 0.3, 0.4, 0.5, 0.6]))
    moments.run.history.measured = {epoch: {VALIDATION_LOSS: loss} for epoch, loss in losses.items()}
    events = moments.train()
    assert [event.epoch for event in only(events, EpochDone)] == list(range(1, epochs + 1))
    assert stems(events) == files
    notes = only(events, Noted)
    assert [note.where for note in notes] == ["early_stopping_epochs"] * (epochs < 6)
    assert not notes or "The training ends here." in notes[0].message


# --- before and after the training ----------------------------------------------------------------


def run_through(moments: Moments) -> list[Event]:
    """All events of the run on its model; each pause ends at once."""
    events = []
    for event in trainer._run_through(moments.run, moments.training.latents, None):
        events.append(event)
        moments.during(event)
        if event == StateChanged("paused"):
            moments.run.control.resume()
    return events


def test_a_run_names_its_changes_encodes_its_captions_trains_and_leaves_the_model_alone(make: Made) -> None:
    moments = make(output_name="taken", train_text_encoder=False, max_steps=2)
    before = list(moments.run.adapter.layers.values())
    events = run_through(moments)
    assert [note.where for note in only(events, Noted)] == ["output_name"]
    assert [(event.phase, event.total) for event in only(events, PhaseStarted)] == [("text", 4), ("train", 2)]
    assert only(events, Workload)[0].device == "cpu" and stems(events) == ["000001"]
    assert before and not any(isinstance(module, AdaptedLayer) for module in moments.run.model.unet.modules())


def test_a_pause_before_the_training_is_reported_before_it(make: Made) -> None:
    moments = make(max_steps=1)
    moments.run.control.pause()
    kinds = [event for event in run_through(moments) if isinstance(event, (StateChanged, PhaseStarted))]
    assert kinds == [StateChanged("paused"), StateChanged("running"), PhaseStarted("train", 1)]


@pytest.mark.parametrize("is_stopped", [True, False])
def test_only_a_run_that_was_not_stopped_measures_its_images_at_the_end(
    is_stopped: bool, make: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments, measured = make(max_steps=2), list[RunContext]()

    def measure(run: RunContext, _: object) -> Iterator[Event]:
        measured.append(run)
        yield from ()

    monkeypatch.setattr(trainer, "measure_images_at_end", measure)
    if is_stopped:
        moments.during = at_step(1, moments.run.control.stop)
    run_through(moments)
    assert measured == [moments.run] * (not is_stopped)


# --- resuming -------------------------------------------------------------------------------------


def test_a_run_that_was_interrupted_before_saving_a_due_step_saves_it_first(make: Made) -> None:
    moments = make(save_every_n_steps=3)
    assert stems(moments.resume(2)) == [] and stems(moments.resume(3)) == ["step00000003"]
    assert stems(moments.resume(3)) == []


def test_a_run_that_was_interrupted_after_an_epoch_makes_what_that_lacks(make: Made) -> None:
    moments = make(**DRAWN)
    events = moments.resume(4)
    assert stems(events) == ["000001"] and drawn(events) == [(1, 0)]
    moments.run.history.samples[1], moments.run.images[1] = 1, []
    assert moments.resume(4) == []
    del moments.run.images[1]
    assert drawn(moments.resume(4)) == [(1, 0)], "the images are needed for the grid"
    moments.run.images[1] = []
    moments.run.history.samples[1] = 0
    assert drawn(moments.resume(4)) == [(1, 0)]


def test_an_epochs_file_of_an_earlier_attempt_is_written_again(make: Made) -> None:
    """The plan had other lengths then: the file is of another step."""
    moments = make()
    path = moments.run.lora_dir / "test-000001.safetensors"
    moments.run.history.add(SavedLora(path, 1, 3))
    assert stems(moments.resume(4)) == ["000001"]


def test_the_last_step_of_a_run_within_an_epoch_is_finished_as_its_end(make: Made) -> None:
    assert stems(make(max_steps=6, save_every_n_steps=3).resume(6)) == ["000002"]


def test_unfinished_samples_of_a_step_are_drawn_again(make: Made) -> None:
    moments = make(**DRAWN)
    moments.run.history.unfinished_samples = {(1, 2): 1}
    assert drawn(moments.resume(2)) == [(1, 2)] and drawn(moments.resume(3)) == []


def test_a_new_run_and_one_before_its_first_step_have_nothing_to_finish(make: Made) -> None:
    moments = make(save_every_n_steps=3, **DRAWN)
    assert moments.resume(0) == []
    moments.run.state, moments.training.step = None, 3
    assert list(trainer._finish_interrupted_step(moments.run, moments.training)) == []
