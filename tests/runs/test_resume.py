"""Going on with a run: after a stop, after a crash, beyond its end; and which of its files are kept."""

from __future__ import annotations

import json
import pkgutil
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.config.sample_prompts import prompt_groups, sample_prompts
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ConfigError, OutputError, TrainingError
from lib_lora_train.core.events import (
    Event,
    GridDrawn,
    LoraRemoved,
    LoraWritten,
    Noted,
    PhaseEnded,
    PhaseStarted,
    Resumed,
    SampleDrawn,
    StateChanged,
    StateSaved,
    StepDone,
)
from lib_lora_train.formats.toml import read_toml_config, write_toml_config
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs import checkpoints
from lib_lora_train.runs.records.event_log import log_line, log_record, read_log
from lib_lora_train.runs.records.folder import RunFolder, new_run_folder
from lib_lora_train.runs.records.past_runs import find_resume_point, past_runs
from lib_lora_train.runs.runner import Runner
from lib_lora_train.runs.trainer import run_training
from tests.paths import ROOT
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, ending, only, small_run_setup

_OF_THE_MOMENT = {"ss_session_id", "ss_training_started_at", "ss_training_finished_at", "modelspec.date"}

EVERYTHING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "shuffle_captions": True,
    "caption_dropout": 0.3,
    "lr_schedule": "cosine",
    "warmup": 2.0,
    "optimizer": "Prodigy",
    "optimizer_args": "weight_decay=0.01 safeguard_warmup=True",
    "learning_rate": 1.0,
    **NO_SAMPLES,
}


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def setup(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> RunSetup:
    """Without samples, which take most of the time."""
    setup = small_run_setup(shared_host, demo_dir, tmp_path)
    return setup._replace(config=setup.config.replace(**NO_SAMPLES))


def logged(events: Iterable[Event], folder: RunFolder) -> list[Event]:
    """The events, also written to the run's log, as whoever iterates a run does it."""
    seen = []
    with folder.log.open("a", encoding="utf-8") as lines:
        for event in events:
            lines.write(log_line(log_record(event)))
            lines.flush()
            seen.append(event)
    return seen


def run_logged(
    setup: RunSetup, config: TrainConfig, *, stop_after: int = 0, folder: RunFolder | None = None
) -> list[Event]:
    """A run in its own folder, stopped after a step (0: never)."""
    control = Control()

    def watched() -> Iterable[Event]:
        for event in run_training(config, setup.host, folder=folder or setup.folder, control=control):
            if isinstance(event, StepDone) and event.step == stop_after:
                control.stop()
            yield event

    return logged(watched(), folder or setup.folder)


def resume(setup: RunSetup, **ways: Any) -> list[Event]:
    """The events of the run in the folder when resumed."""
    way = find_resume_point(setup.folder, **ways)
    return logged(
        run_training(way.config, setup.host, folder=way.folder, control=Control(), state=way.state), setup.folder
    )


def one_step_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run can be stopped after any step."""
    monkeypatch.setattr("lib_lora_train.training.loop._TURN_SECONDS", 0.0)


def tensors_and_metadata(path: Path) -> tuple[bytes, dict[str, str]]:
    """The bytes behind the header, and the metadata but for what names the moment."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    metadata = read_adapter(path).metadata
    return raw[start:], {key: value for key, value in metadata.items() if key not in _OF_THE_MOMENT}


def names(setup: RunSetup) -> list[str]:
    """The LoRA files that stand."""
    return sorted(path.stem for path in setup.host.lora_dir.glob("*.safetensors"))


# --- exactly ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stop_after", "accumulation"), [(2, 1), (3, 1), (5, 1), (1, 2)])
def test_resumed_run_saves_the_same_file_as_an_uninterrupted_one(
    stop_after: int, accumulation: int, setup: RunSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle and at the end of an epoch, with all that draws, counts or remembers switched on."""
    one_step_a_turn(monkeypatch)
    config = setup.config.replace(**{**EVERYTHING, "gradient_accumulation": accumulation})
    whole = run_logged(setup, config.replace(output_dir=str(tmp_path / "whole")), folder=new_run_folder(tmp_path, "w"))
    run_logged(setup, config, stop_after=stop_after)
    rest = resume(setup)
    assert only(rest, Resumed) == [Resumed(stop_after)]
    assert [e.step for e in only(rest, StepDone)] == [e.step for e in only(whole, StepDone)][stop_after:]
    expected, ours = (Path(only(events, LoraWritten)[-1].path) for events in (whole, rest))
    assert expected.name == ours.name == "test-000002.safetensors"
    (tensors, metadata), (expected_tensors, expected_metadata) = map(tensors_and_metadata, (ours, expected))
    assert tensors == expected_tensors
    assert {**metadata, "lora_train_config": ""} == {**expected_metadata, "lora_train_config": ""}  # output_dir differs
    assert ending(rest) == "finished"


def test_ema_is_saved_and_resumed(setup: RunSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_step_a_turn(monkeypatch)
    config = setup.config.replace(ema_decay=0.5, epochs=1)
    plain = run_logged(
        setup, setup.config.replace(epochs=1, output_dir=str(tmp_path / "p")), folder=new_run_folder(tmp_path, "p")
    )
    whole = run_logged(setup, config.replace(output_dir=str(tmp_path / "w")), folder=new_run_folder(tmp_path, "w"))
    run_logged(setup, config, stop_after=2)
    rest = resume(setup)
    paths = [Path(only(events, LoraWritten)[-1].path) for events in (plain, whole, rest)]
    without, expected, ours = (tensors_and_metadata(path)[0] for path in paths)
    assert ours == expected != without


_CHILD = """
import sys
from pathlib import Path
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.config.train_config import read_config
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.trainer import run_training
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.core.control import Control
import lib_lora_train.training.loop as loop
loop._TURN_SECONDS = 0.0
folder = RunFolder(Path(sys.argv[2]))
config, _ = read_config(read_toml_config(Path(sys.argv[1])))
host = StandaloneHost(None, None, Path(sys.argv[3]), "cpu")
for event in log_events(run_training(config, host, folder=folder, control=Control()), folder.log):
    if type(event).__name__ == "StepDone" and event.step == 5:
        print("at step 5", flush=True)
        sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_killed_run_resumes_from_its_newest_state(setup: RunSetup, tmp_path: Path) -> None:
    """Killed after step 5 of 6 with a state every 2 steps: states 3 and 4 exist, and steps from 5 on are repeated."""
    config = setup.config.replace(**EVERYTHING, save_state_every_n_steps=2, keep_last_states=9)
    write_toml_config(tmp_path / "c.toml", config)
    places = (tmp_path / "c.toml", setup.folder.root, setup.host.lora_dir)
    command = [sys.executable, "-c", _CHILD, *map(str, places)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert "at step 5\n" in iter(child.stdout.readline, "")
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    assert setup.folder.state_steps() == [2, 3, 4]
    (row,) = past_runs(setup.folder.root.parent)
    assert (row["step"], row["total_steps"], row["can_resume"], row["can_extend"]) == (4, 6, True, False)
    rest = resume(setup)
    assert [event.step for event in only(rest, StepDone)] == [5, 6]
    whole = run_logged(setup, config.replace(output_dir=str(tmp_path / "whole")), folder=new_run_folder(tmp_path, "w"))
    expected, ours = (Path(only(events, LoraWritten)[-1].path) for events in (whole, rest))
    assert tensors_and_metadata(ours)[0] == tensors_and_metadata(expected)[0]


def test_epoch_interrupted_before_saving_is_saved_on_resume(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise OutputError("The disk is gone.")

    with monkeypatch.context() as patch, pytest.raises(OutputError):
        patch.setattr("lib_lora_train.runs.checkpoints.write_adapter", crash)
        run_logged(setup, setup.config.replace(sample_prompts=("zorp --s 1 --l 1",), sample_every_n_epochs=1))
    assert setup.folder.state_steps() == [3] and names(setup) == []
    rest = resume(setup)
    assert names(setup) == ["test-000001", "test-000002"]
    assert len(only(rest, GridDrawn)) == 1
    assert sorted(path.name for path in setup.folder.samples.iterdir()) == [
        f"epoch-{epoch:06}-01.png" for epoch in (0, 1, 2)
    ]


def test_earlier_samples_are_in_the_grid_and_not_repeated(setup: RunSetup) -> None:
    config = setup.config.replace(sample_prompts=("zorp --s 1 --l 1",), sample_every_n_epochs=1)
    run_logged(setup, config, stop_after=4)
    drawn = {path: path.stat().st_mtime_ns for path in setup.folder.samples.iterdir()}
    rest = resume(setup)
    assert len(drawn) == 2
    assert all(path.stat().st_mtime_ns == when for path, when in drawn.items())
    assert [event.epoch for event in only(rest, SampleDrawn)] == [2]


def test_a_resumed_run_keeps_the_prompts_that_it_wrote_itself(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    config = setup.config.replace(sample_prompts=(), sample_every_n_epochs=1, sample_steps=1)
    run_logged(setup, config, stop_after=4)
    written, _ = read_config(read_toml_config(setup.folder.config))
    monkeypatch.setattr("lib_lora_train.runs.planning.suggest_prompts", lambda *_: ("something else",))
    rest = resume(setup)
    assert {event.prompt for event in only(rest, SampleDrawn)} == {one.prompt for one in sample_prompts(written)}
    assert prompt_groups(written).concept and prompt_groups(written).control
    assert only(rest, GridDrawn)


def test_pause_saves_the_state(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    one_step_a_turn(monkeypatch)
    control = Control()
    saved = []
    for event in run_training(setup.config, setup.host, folder=setup.folder, control=control):
        if isinstance(event, StepDone) and event.step == 2:
            control.pause()
        if isinstance(event, StateSaved):
            saved.append(event.step)
            control.resume()
    assert saved[0] == 2


def test_without_states_a_run_cannot_be_resumed(setup: RunSetup) -> None:
    run_logged(setup, setup.config.replace(save_state=False, epochs=1))
    assert setup.folder.state_steps() == []
    with pytest.raises(TrainingError, match=r"no training state was saved.*save_state"):
        find_resume_point(setup.folder)


def test_state_that_cannot_be_written_is_only_a_warning(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: object) -> None:
        raise OutputError(f"{path}: the training state cannot be written (full).")

    monkeypatch.setattr("lib_lora_train.runs.checkpoints.write_state", full)
    events = run_logged(setup, setup.config.replace(epochs=1))
    assert any("only be resumed from an earlier step" in note.message for note in only(events, Noted))
    assert ending(events) == "finished" and names(setup) == ["test-000001"]


# --- what cannot be written ---------------------------------------------------------------------------


def attended(setup: RunSetup, config: TrainConfig, on_pause: Callable[[Control, str], None]) -> list[Event]:
    """A run that somebody attends; `on_pause` is what he does when it pauses with a reason."""
    control = Control(is_attended=True)
    events = []
    for event in run_training(config, setup.host, folder=setup.folder, control=control):
        events.append(event)
        if isinstance(event, StateChanged) and event.state == "paused" and event.message:
            on_pause(control, event.message)
    return events


def test_lora_that_cannot_be_written_pauses_until_it_can(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    write = write_adapter
    failures = [OutputError("The disk is full."), OutputError("The disk is still full.")]

    def fails_twice(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return write(*arguments, **options)

    monkeypatch.setattr(checkpoints, "write_adapter", fails_twice)
    reasons: list[str] = []

    def resume_it(control: Control, reason: str) -> None:
        reasons.append(reason)
        control.resume()

    events = attended(setup, setup.config, resume_it)
    assert ending(events) == "finished" and names(setup) == ["test-000001", "test-000002"]
    assert len(reasons) == 2 and all("press Resume" in reason for reason in reasons)


@pytest.mark.parametrize("values", [{"epochs": 1}, {"epochs": 1, "save_every_n_steps": 2}], ids=["epoch", "step"])
def test_a_lora_that_cannot_be_written_where_nobody_waits_loses_nothing(
    setup: RunSetup, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    """The state of that step is kept, and the resumed run writes the file first."""
    config, whole = setup.config.replace(**values), new_run_folder(setup.folder.root.parent, "whole")
    expected = [event.step for event in only(run_logged(setup, config, folder=whole), LoraWritten)]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_adapter", _full)
        with pytest.raises(OutputError, match="The disk is full"):
            run_logged(setup, config)
    assert setup.folder.state_steps() == [values.get("save_every_n_steps", 3)]
    again = resume(setup)
    assert [event.step for event in only(again, LoraWritten)] == expected and ending(again) == "finished"


def _full(*_: Any, **__: Any) -> None:
    raise OutputError("The disk is full.")


def test_stop_in_the_pause_for_a_full_disk_ends_the_run(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OutputError("The disk is full.")

    monkeypatch.setattr(checkpoints, "write_adapter", fail)
    with pytest.raises(OutputError):
        attended(setup, setup.config, lambda control, _: control.stop())
    assert setup.folder.state_steps() == [3], "nothing is lost: the state was saved before"


def test_state_that_cannot_be_written_pauses_once_and_then_only_warns(
    setup: RunSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: object) -> None:
        raise OutputError(f"{path}: the training state cannot be written (full).")

    monkeypatch.setattr(checkpoints, "write_state", full)
    pauses: list[str] = []

    def resume_it(control: Control, reason: str) -> None:
        pauses.append(reason)
        control.resume()

    events = attended(setup, setup.config, resume_it)
    assert len(pauses) == 1 and ending(events) == "finished" and len(names(setup)) == 2


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory.")], ids=["cpu", "gpu"]
)
@pytest.mark.parametrize(
    "place",
    [
        "adapters.inject.Adapter.state",
        "runs.checkpoints.write_adapter",
        "runs.run_context.RunContext.eval_weights",
        "runs.checkpoints.write_state",
        "training.training_run.Training.state",
    ],
)
def test_full_memory_while_saving_pauses_until_it_can(
    place: str, error: Exception, setup: RunSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, _, name = place.rpartition(".")
    work = getattr(pkgutil.resolve_name(f"lib_lora_train.{owner}"), name)
    failures = [error]

    def fails_once(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return work(*arguments, **options)

    monkeypatch.setattr(f"lib_lora_train.{place}", fails_once)
    reasons: list[str] = []

    def resume_it(control: Control, reason: str) -> None:
        reasons.append(reason)
        control.resume()

    events = attended(setup, setup.config.replace(**NO_SAMPLES), resume_it)
    assert ending(events) == "finished" and names(setup) == ["test-000001", "test-000002"]
    (reason,) = reasons
    assert "memory is full. Close other programs" in reason and "press Resume" in reason


@pytest.mark.parametrize("product", ["samples", "grid.png"])
def test_images_that_cannot_be_written_are_warnings(product: str, setup: RunSetup) -> None:
    """Something else is in the place of the file or folder, so that nobody, not even root, can write there."""
    place = setup.folder.root / product
    if product == "samples":
        place.rmdir()
        place.touch()
    else:
        place.mkdir()
    events = run_logged(
        setup, setup.config.replace(epochs=1, sample_prompts=("zorp --s 1 --l 1",), sample_every_n_epochs=1)
    )
    assert ending(events) == "finished" and names(setup) == ["test-000001"]
    assert any(product in note.message and note.level == "warning" for note in only(events, Noted))
    open_phases = [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert open_phases.count("samples") == sum(e.phase == "samples" for e in only(events, PhaseEnded))


def test_cache_that_cannot_be_written_is_a_warning(setup: RunSetup) -> None:
    for name in ("latents", "text"):
        (setup.folder.root.parent / name).touch()
    config = setup.config.replace(epochs=1, cache_to_disk=True, train_text_encoder=False)
    events = run_logged(setup, config)
    assert ending(events) == "finished"
    assert [note.where for note in only(events, Noted)].count("cache_to_disk") == 3, "plan, latents, text"


# --- save now and sample now -------------------------------------------------------------------------


def test_what_is_requested_at_the_last_step_of_an_epoch_belongs_to_that_epoch(
    setup: RunSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not the epoch's end: the epoch's own file and samples follow."""
    one_step_a_turn(monkeypatch)
    control, events = Control(), list[Event]()
    config = setup.config.replace(epochs=2, sample_prompts=("zorp --s 1 --l 1",), sample_every_n_epochs=1)
    for event in run_training(config, setup.host, folder=setup.folder, control=control):
        events.append(event)
        if isinstance(event, StepDone) and event.step in (2, 3):
            control.sample_now()
            control.save_now()
    step_files = [event for event in only(events, LoraWritten) if "step" in Path(event.path).stem]
    assert [(event.epoch, event.step) for event in step_files] == [(1, 2), (1, 3)]
    assert [read_adapter(event.path).metadata["ss_epoch"] for event in step_files] == ["1", "1"]
    drawn = [(event.epoch, event.step) for event in only(events, SampleDrawn)]
    assert drawn == [(0, 0), (1, 2), (1, 3), (1, 0), (2, 0)]


def test_checkpoint_may_be_renamed_or_replaced_while_a_run_trains(
    demo_dir: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    shutil.copytree(tiny_checkpoint.parent, tmp_path / "base")
    copy = tmp_path / "base" / tiny_checkpoint.name
    setup = small_run_setup(StandaloneHost(copy, None, tmp_path / "Lora", "cpu"), demo_dir, tmp_path)
    hashes = []
    for event in run_training(setup.config.replace(**NO_SAMPLES), setup.host, folder=setup.folder, control=Control()):
        if isinstance(event, LoraWritten):
            hashes.append(read_adapter(event.path).metadata["ss_sd_model_hash"])
            copy.unlink(missing_ok=True)
    assert len(hashes) == 2 and len(set(hashes)) == 1


# --- further ---------------------------------------------------------------------------------------


def test_extended_run_continues_the_series_of_files(setup: RunSetup, tmp_path: Path) -> None:
    config = setup.config.replace(lr_schedule="constant")
    run_logged(setup, config)
    with pytest.raises(TrainingError, match="6 steps were planned and done"):
        find_resume_point(setup.folder)
    (row,) = past_runs(setup.folder.root.parent)
    assert (row["can_resume"], row["can_extend"], row["epochs"]) == (False, True, 2)
    rest = resume(setup, more_epochs=1)
    assert [event.step for event in only(rest, StepDone)] == [7, 8, 9]
    assert names(setup) == ["test-000001", "test-000002", "test-000003"]
    straight = config.replace(epochs=3, output_dir=str(tmp_path / "straight"))
    expected = only(run_logged(setup, straight, folder=new_run_folder(tmp_path, "s")), LoraWritten)[-1]
    ours = only(rest, LoraWritten)[-1]
    assert tensors_and_metadata(Path(ours.path))[0] == tensors_and_metadata(Path(expected.path))[0]


def test_extended_run_reports_its_learning_rate(setup: RunSetup) -> None:
    run_logged(setup, setup.config.replace(epochs=1))
    rest = resume(setup, more_epochs=1)
    # ½(1 + cos(π·3/6)) = 50%
    assert [note.message for note in only(rest, Noted) if "50% of its full value" in note.message]


def test_extended_run_reports_when_text_encoders_stop(setup: RunSetup) -> None:
    config = setup.config.replace(epochs=1, stop_text_encoder=0.5, lr_schedule="constant")
    run_logged(setup, config)
    rest = resume(setup, more_epochs=3)  # 1 of 3 steps trained them; of 12 they get 6, and 3 are done
    messages = [note.message for note in only(rest, Noted) if note.where == "stop_text_encoder"]
    assert ["until step 6" in text for text in messages] == [True]
    rates = {event.step: event.learning_rates["text_encoder"] for event in only(rest, StepDone)}
    assert [rates[step] > 0 for step in (4, 6, 7)] == [True, True, False]


def test_extending_a_run_raises_max_steps(setup: RunSetup) -> None:
    run_logged(setup, setup.config.replace(epochs=9, max_steps=2))
    rest = resume(setup, more_epochs=1)
    assert [event.step for event in only(rest, StepDone)] == [3, 4, 5]


def test_resuming_from_an_earlier_state_deletes_later_ones(setup: RunSetup) -> None:
    run_logged(setup, setup.config.replace(keep_last_states=2))
    assert setup.folder.state_steps() == [3, 6]
    with pytest.raises(TrainingError, match=r"no training state after step 4\. Choose one of 3, 6"):
        find_resume_point(setup.folder, step=4)
    way = find_resume_point(setup.folder, step=3)
    events = run_training(way.config, setup.host, folder=way.folder, control=Control(), state=way.state)
    assert next(event for event in events if isinstance(event, Resumed)) == Resumed(3)
    assert setup.folder.state_steps() == [3]
    events.close()  # type: ignore[attr-defined]


def test_settings_of_another_run_are_refused(setup: RunSetup) -> None:
    run_logged(setup, setup.config.replace(epochs=1))
    before = setup.folder.config.read_bytes()
    way = find_resume_point(setup.folder, config=setup.config.replace(rank=4, seed=1))
    with pytest.raises(ConfigError) as error:
        list(run_training(way.config, setup.host, folder=way.folder, control=Control(), state=way.state))
    assert {problem.where for problem in error.value.problems} == {"rank", "seed"}
    assert setup.folder.config.read_bytes() == before


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not a resumable run folder"):
        find_resume_point(RunFolder(tmp_path))


def test_runner_resumes_with_complete_curves_and_queue_extends(setup: RunSetup) -> None:
    run_logged(setup, setup.config.replace(lr_schedule="constant"), stop_after=3)
    runner = Runner(setup.host, setup.folder.root.parent)
    run = setup.folder.root.name
    assert runner.resume_run(run) == run
    runner.wait(120)
    assert runner.status()["state"] == "finished"
    assert [step for step, _ in runner.loss_curve()] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(TrainingError, match="6 steps were planned and done"):
        runner.resume_run(run)
    runner.enqueue_resume(run, more_epochs=1)
    assert runner.start_queue() == run
    runner.wait(120)
    assert [step for step, _ in runner.loss_curve()] == list(range(1, 10))
    assert names(setup) == ["test-000001", "test-000002", "test-000003"]


# --- which files are kept ---------------------------------------------------------------------------


def test_files_every_n_steps_and_from_an_epoch_on(setup: RunSetup) -> None:
    run_logged(setup, setup.config.replace(epochs=3, save_every_n_steps=2, save_from_epoch=2))
    steps = ["test-step00000002", "test-step00000004", "test-step00000008"]  # 6 is the end of epoch 2
    assert names(setup) == ["test-000002", "test-000003", *steps]


def test_only_the_last_files_of_this_run_are_kept(setup: RunSetup) -> None:
    setup.host.lora_dir.mkdir(parents=True)
    foreign = setup.host.lora_dir / "testament-000001.safetensors"
    foreign.write_bytes(b"somebody's")
    own_card = setup.host.lora_dir / "test-000002.json"
    config = setup.config.replace(epochs=3, save_every_n_steps=1, keep_last_epochs=1, keep_last_step_files=2)
    control = Control()

    def watched() -> Iterable[Event]:
        for event in run_training(config, setup.host, folder=setup.folder, control=control):
            if isinstance(event, LoraWritten) and event.path.endswith("test-000002.safetensors"):
                time.sleep(0.01)
                own_card.write_text("{}", encoding="utf-8")  # edited by its owner
            yield event

    events = logged(watched(), setup.folder)
    assert names(setup) == ["test-000003", "test-step00000007", "test-step00000008", "testament-000001"]
    cards = sorted(path.name for path in setup.host.lora_dir.glob("*.json"))
    assert cards == ["test-000002.json", "test-000003.json", "test-step00000007.json", "test-step00000008.json"]
    assert len(only(events, LoraRemoved)) == 2 + 4
    assert setup.folder.state_steps() == [9]
    (row,) = past_runs(setup.folder.root.parent)
    assert [Path(path).stem for path in row["loras"]] == ["test-step00000007", "test-step00000008", "test-000003"]


def test_files_from_before_an_interruption_are_counted(setup: RunSetup) -> None:
    config = setup.config.replace(epochs=3, keep_last_epochs=1)
    run_logged(setup, config, stop_after=3)
    resume(setup)
    assert names(setup) == ["test-000003"]


def test_log_with_a_truncated_line_can_be_read(setup: RunSetup) -> None:
    run_logged(setup, setup.config.replace(epochs=1))
    with setup.folder.log.open("a", encoding="utf-8") as lines:
        lines.write('{"kind": "StateChanged", "sta')
    assert all(isinstance(record, dict) for record in read_log(setup.folder.log))
    assert json.dumps([row["state"] for row in past_runs(setup.folder.root.parent)]) == '["finished"]'


def test_training_changes_the_weights(setup: RunSetup) -> None:
    """The comparisons above would also hold for runs that learn nothing."""
    events = run_logged(setup, setup.config.replace(**EVERYTHING))
    first, last = (read_adapter(Path(event.path)).state for event in only(events, LoraWritten))
    assert any(not torch.equal(first[key], last[key]) for key in first)
