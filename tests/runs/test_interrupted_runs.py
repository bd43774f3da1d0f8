"""Runs that were killed, moved, damaged, or are resumed on another model."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ModelError, TrainingError
from lib_lora_train.core.events import Event, GridDrawn, LoraWritten, Resumed, StateChanged, StepDone
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.model_identity import ModelIdentity, identity_from_values
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.past_runs import ResumePoint, find_resume_point, past_runs
from lib_lora_train.runs.state_clock import StateClock
from lib_lora_train.runs.trainer import RunOptions, run_training
from lib_lora_train.training.training_state import load_state
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, ending, only, small_run_setup


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def setup(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> RunSetup:
    setup = small_run_setup(shared_host, demo_dir, tmp_path)
    return setup._replace(config=setup.config.replace(**NO_SAMPLES, epochs=1))


def logged(setup: RunSetup, **values: Any) -> list[Event]:
    """A new run, with its log."""
    events = run_training(setup.config.replace(**values), setup.host, folder=setup.folder, control=Control())
    return list(log_events(events, setup.folder.log))


def go_on(setup: RunSetup, point: ResumePoint, options: RunOptions | None = None) -> list[Event]:
    events = run_training(
        point.config, setup.host, folder=point.folder, control=Control(), state=point.state, options=options
    )
    return list(log_events(events, point.folder.log))


# --- killed ----------------------------------------------------------------------------------------


def test_run_killed_before_its_first_state_begins_again_from_its_settings(setup: RunSetup) -> None:
    events = log_events(
        run_training(setup.config, setup.host, folder=setup.folder, control=Control()), setup.folder.log
    )
    for event in events:
        if isinstance(event, StateChanged):
            break  # as if the process was killed here
    shutil.rmtree(setup.folder.states, ignore_errors=True)
    (row,) = past_runs(setup.folder.root.parent)
    assert (row["can_resume"], row["can_begin_again"]) == (False, False), "nothing to begin with yet"
    next(events)  # the settings are written, and nothing else
    events.close()  # type: ignore[attr-defined]
    (row,) = past_runs(setup.folder.root.parent)
    assert (row["can_resume"], row["can_begin_again"]) == (False, True)
    point = find_resume_point(setup.folder)
    assert point.state is None and point.config == setup.config
    rest = go_on(setup, point)
    assert only(rest, Resumed) == [Resumed(0)] and ending(rest) == "finished"
    with pytest.raises(TrainingError, match="not a resumable run folder"):
        find_resume_point(RunFolder(setup.folder.root.parent))


def test_finished_run_without_its_grid_is_resumed_for_the_images_only(setup: RunSetup) -> None:
    logged(setup, sample_prompts=("zorp --s 1 --l 1",), sample_every_n_epochs=1)
    setup.folder.grid.unlink()
    setup.folder.sample(1, 1).unlink()
    (row,) = past_runs(setup.folder.root.parent)
    assert row["can_resume"]
    rest = go_on(setup, find_resume_point(setup.folder))
    assert not only(rest, StepDone) and len(only(rest, GridDrawn)) == 1 and setup.folder.sample(1, 1).is_file()


def test_state_is_due_after_most_of_a_minute_at_most_a_hundredth_of_the_time() -> None:
    now = [0.0]
    clock = StateClock(lambda: now[0])
    now[0] = 49.0
    assert not clock.is_due()
    now[0] = 50.0
    assert clock.is_due()
    with clock.measure():
        now[0] += 3.0  # a large state on a slow disk
    now[0] += 299.0
    assert not clock.is_due()
    now[0] += 1.0
    assert clock.is_due()


def test_states_by_time_are_kept_beside_those_of_epochs(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the newest is kept, and a run resumes from it."""
    monkeypatch.setattr("lib_lora_train.training.loop._TURN_SECONDS", 0.0)
    monkeypatch.setattr("lib_lora_train.runs.state_clock._SECONDS", 0.0)
    monkeypatch.setattr("lib_lora_train.runs.state_clock._MAX_SHARE", 1e9)
    events = run_training(setup.config.replace(epochs=2), setup.host, folder=setup.folder, control=Control())
    for event in events:
        if isinstance(event, StepDone) and event.step == 6:
            break
    events.close()  # type: ignore[attr-defined]
    assert sorted(path.name for path in setup.folder.states.iterdir()) == ["recent-00000005.pt", "step-00000003.pt"]
    point = find_resume_point(setup.folder)
    assert point.state == setup.folder.recent_state_path(5)
    assert [event.step for event in only(go_on(setup, point), StepDone)] == [6]
    assert [path.name for path in setup.folder.states.iterdir()] == ["step-00000006.pt"]


def test_every_damage_of_a_state_is_found(setup: RunSetup) -> None:
    logged(setup)
    path = setup.folder.state_path(3)
    good = path.read_bytes()
    load_state(path)
    draw = random.Random(1)
    for number in range(60):
        bad = bytearray(good)
        if number % 3:
            bad[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        else:
            bad = bad[: draw.randrange(len(good))]
        path.write_bytes(bad)
        with pytest.raises(TrainingError, match="damaged"):
            load_state(path)


# --- another model ----------------------------------------------------------------------------------


class OtherModelHost(StandaloneHost):
    """Has another model of the same shapes loaded until `is_right`."""

    is_right = False
    loads = 0

    def load_model(self, config: Any) -> DiffusionModel:
        self.loads += 1
        model = super().load_model(config)
        return model if self.is_right else replace(model, name="other", file_hash="f" * 64)

    def run_target(self, config: Any) -> Any:
        return replace(super().run_target(config), vae=Path("right" if self.is_right else "wrong"))


def test_run_is_not_resumed_on_another_model_unless_on_purpose(setup: RunSetup) -> None:
    logged(setup)
    point = find_resume_point(setup.folder, more_epochs=1)
    other = setup._replace(host=OtherModelHost(None, None, setup.host.lora_dir, "cpu"))
    before = setup.folder.config.read_bytes()
    with pytest.raises(ModelError, match=r"started on tiny-sd, but other is loaded.*--other-model"):
        go_on(other, point)
    assert setup.folder.config.read_bytes() == before and setup.folder.state_steps() == [3]
    assert ending(go_on(other, point, RunOptions(any_model=True))) == "finished"


def test_in_a_webui_the_run_waits_until_its_model_is_loaded(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib_lora_train.training.wait_for_model._RETRY_SECONDS", 0.01)
    logged(setup)
    point = find_resume_point(setup.folder, more_epochs=1)
    host = OtherModelHost(None, None, setup.host.lora_dir, "cpu")
    monkeypatch.setattr(host, "follows_selection", True)
    seen: list[str] = []

    def watched() -> Iterator[Event]:
        for event in run_training(point.config, host, folder=point.folder, control=Control(), state=point.state):
            if isinstance(event, StateChanged):
                seen.append(event.state)
                host.is_right = host.is_right or event.state == "waiting"
            yield event

    assert ending(list(watched())) == "finished"
    assert seen[:3] == ["running", "waiting", "running"] and host.loads == 2


def test_a_waiting_run_goes_on_with_the_loaded_model_if_the_user_accepts_it(
    setup: RunSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib_lora_train.training.wait_for_model._RETRY_SECONDS", 0.01)
    logged(setup)
    point = find_resume_point(setup.folder, more_epochs=1)
    host, control = OtherModelHost(None, None, setup.host.lora_dir, "cpu"), Control()
    monkeypatch.setattr(host, "follows_selection", True)
    events = []
    for event in run_training(point.config, host, folder=point.folder, control=control, state=point.state):
        events.append(event)
        if isinstance(event, StateChanged) and event.state == "waiting":
            assert event.offer == "other-model"
            control.accept_any_model()
    assert ending(events) == "finished"


def test_a_model_that_is_unknown_is_equal_to_every_other() -> None:
    known = ModelIdentity("a", "1" * 64, "")
    assert not ModelIdentity().difference(known) and not known.difference(ModelIdentity("b"))
    assert "another VAE" in known.difference(replace(known, vae="2"))
    assert identity_from_values(known.values()) == known and identity_from_values({}) == ModelIdentity()


# --- moved -----------------------------------------------------------------------------------------


def test_moved_run_goes_on_at_its_new_place_and_never_writes_to_the_old_one(
    setup: RunSetup, tmp_path: Path, shared_host: StandaloneHost
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for name in ("data", "outputs"):
        shutil.move(tmp_path / name, old / name)
    concepts = (replace(setup.config.concepts[0], folder=str(old / "data")),)
    setup.host.lora_dir = old / "Lora"
    here = setup._replace(
        folder=RunFolder(old / "outputs" / setup.folder.root.name), config=setup.config.replace(concepts=concepts)
    )
    logged(here)
    shutil.move(old, new)
    setup.host.lora_dir = tmp_path / "the app's own"
    folder = RunFolder(new / "outputs" / setup.folder.root.name)
    (row,) = past_runs(new / "outputs")
    assert [Path(path).parent for path in row["loras"]] == [new / "Lora"]
    point = find_resume_point(folder, more_epochs=1)
    assert point.config.concepts[0].folder == str(new / "data")
    written = [Path(event.path) for event in only(go_on(here, point), LoraWritten)]
    assert [path.parent for path in written] == [new / "Lora"] and not old.exists()
    again = find_resume_point(folder, more_epochs=1)
    elsewhere = go_on(here, again, RunOptions(lora_dir=tmp_path / "given"))
    assert [Path(event.path).parent for event in only(elsewhere, LoraWritten)] == [tmp_path / "given"]


@pytest.mark.skipif(os.name == "nt", reason="names are always Unicode there")
def test_names_that_are_not_utf8_stop_no_run(setup: RunSetup, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/\x83e\x83X"))
    shutil.copytree(tmp_path / "data", folder)
    concepts = (replace(setup.config.concepts[0], folder=str(folder)),)
    assert ending(logged(setup, concepts=concepts)) == "finished"
    assert ending(go_on(setup, find_resume_point(setup.folder, more_epochs=1))) == "finished"
