"""The runner: one run at a time in a thread, its events, curves and errors."""

from __future__ import annotations

import errno
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import Event, LoraRemoved, LoraWritten, Noted, StateChanged, StepDone, from_record
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.checks.form_check import form_problems
from lib_lora_train.runs.records.downsampling import downsample
from lib_lora_train.runs.records.event_log import EventLog, log_line, log_record, read_lines, read_log
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.runner import Runner


def _made(events: list[Event], gate: threading.Event) -> Any:
    def make(config: TrainConfig, host: Any, *, folder: RunFolder, control: Control) -> Iterator[Event]:
        yield from events
        gate.wait(10)
        yield StateChanged("finished")

    return make


def test_runner_refuses_a_second_run_and_keeps_the_firsts_events(tmp_path: Path) -> None:
    gate = threading.Event()
    steps: list[Event] = [StepDone(n, 1, 1.0 / n, {"unet": 1e-4}, 1.0, 0.1) for n in range(1, 4)]
    runner = Runner(None, tmp_path, make_events=_made([StateChanged("running"), *steps], gate))
    run = runner.start(TrainConfig(output_name="first"))
    with pytest.raises(HostError, match="already running"):
        runner.start(TrainConfig())
    gate.set()
    runner.wait(10)
    status = runner.status()
    assert (status["run"], status["state"], status["step"]) == (run, "finished", 3)
    assert runner.loss_curve() == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    lines = (tmp_path / run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["StateChanged", *["StepDone"] * 3, "StateChanged"]


def test_run_is_stopping_until_it_has_ended(tmp_path: Path) -> None:
    """A step or an image may take a while to finish."""
    gate = threading.Event()
    runner = Runner(None, tmp_path, make_events=_made([StateChanged("running")], gate))
    runner.start(TrainConfig())
    runner.stop()
    assert runner.status()["state"] == "stopping"
    gate.set()
    runner.wait(10)
    assert runner.status()["state"] == "finished"


def test_unexpected_error_reaches_the_page_with_a_crash_report(tmp_path: Path) -> None:
    def broken(*_: object, **__: object) -> Iterator[Event]:
        yield StateChanged("running")
        raise RuntimeError("something unforeseen")

    runner = Runner(None, tmp_path, make_events=broken)
    run = runner.start(TrainConfig())
    runner.wait(10)
    assert runner.status()["state"] == "failed"
    assert "something unforeseen" in runner.status()["message"]
    assert "RuntimeError" in (tmp_path / run / "crash.txt").read_text(encoding="utf-8")


def test_commands_without_a_run_are_refused(tmp_path: Path) -> None:
    runner = Runner(None, tmp_path)
    for command in (runner.pause, runner.resume, runner.stop):
        with pytest.raises(HostError, match="No training"):
            command()


def test_each_command_is_a_request_to_the_run(tmp_path: Path) -> None:
    gate, begun, controls = threading.Event(), threading.Event(), list[Control]()

    def make(*_: object, control: Control, **__: object) -> Iterator[Event]:
        controls.append(control)
        begun.set()
        gate.wait(10)
        yield StateChanged("stopped")

    runner = Runner(None, tmp_path, make_events=make)
    runner.start(TrainConfig())
    assert begun.wait(10)
    (control,) = controls
    assert control.is_attended, "a run that pauses for a full disk can be resumed on the page"
    pending = {
        runner.save_now: ["save"],
        runner.sample_now: ["save", "sample"],
        runner.pause: ["pause", "save", "sample"],
        runner.resume: ["save", "sample"],
        runner.stop: ["stop", "save", "sample"],
    }
    for command, names in pending.items():
        command()
        assert runner.status()["pending"] == names
    assert (control.accepts_any_model, control.is_dropped) == (False, False)
    runner.accept_any_model()
    assert (control.accepts_any_model, control.is_dropped) == (True, False)
    runner.drop()
    assert (control.accepts_any_model, control.is_dropped) == (True, True)
    gate.set()
    runner.wait(10)


def test_beside_an_active_run_nothing_starts_and_no_folder_is_made(tmp_path: Path) -> None:
    gate, begun = threading.Event(), threading.Event()

    def make(config: TrainConfig, host: Any, *, folder: RunFolder, control: Control) -> Iterator[Event]:
        write_toml_config(folder.config, config)  # so that it could be resumed
        begun.set()
        gate.wait(10)
        yield StateChanged("finished")

    runner = Runner(None, tmp_path, make_events=make)
    run = runner.start(TrainConfig())
    runner.enqueue(TrainConfig())
    assert begun.wait(10) and runner.active_run == run
    before = sorted(tmp_path.iterdir())
    commands: list[Callable[[], str]] = [
        lambda: runner.start(TrainConfig()),
        runner.start_queue,
        lambda: runner.resume_run(run),
    ]
    for command in commands:
        with pytest.raises(HostError, match="already running"):
            command()
    assert sorted(tmp_path.iterdir()) == before and len(runner.queued_runs()) == 1
    runner.queue.remove(runner.queued_runs()[0]["id"])
    gate.set()
    runner.wait(10)
    assert runner.active_run == ""


def test_the_status_has_the_events_from_a_number_on(tmp_path: Path) -> None:
    notes: list[Event] = [Noted("hint", "", str(number)) for number in range(3)]
    runner = Runner(None, tmp_path, make_events=lambda *_, **__: iter([*notes, StateChanged("finished")]))
    assert runner.status()["events"] == [] and runner.loss_curve() == [] and runner.rate_curves() == {}
    runner.start(TrainConfig())
    runner.wait(10)
    status = runner.status()
    assert [event.get("message") for event in status["events"]] == ["0", "1", "2", ""] and status["next"] == 4
    assert runner.status(2)["events"] == status["events"][2:]
    assert runner.status(4)["events"] == []


def test_what_is_done_to_a_runs_files_is_added_to_that_run_alone(tmp_path: Path) -> None:
    events: list[Event] = [LoraWritten("/loras/a.safetensors", 1, 3), StateChanged("finished")]
    runner = Runner(None, tmp_path, make_events=lambda *_, **__: iter(events))
    (tmp_path / "older").mkdir()
    removed = LoraRemoved("/loras/a.safetensors")
    runner.note("older", removed)  # before the first run
    run = runner.start(TrainConfig())
    runner.wait(10)
    runner.note("older", removed)
    assert runner.lora_paths() == (Path("/loras/a.safetensors"),)
    assert [record["kind"] for record in read_log(tmp_path / "older" / "events.jsonl")] == ["LoraRemoved"] * 2
    runner.note(run, removed)
    assert runner.lora_paths() == ()
    assert [record["kind"] for record in read_log(tmp_path / run / "events.jsonl")][-1] == "LoraRemoved"


def test_the_console_shows_failures_as_errors_and_other_messages_as_information(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = [StateChanged("waiting", "Another model is loaded."), StateChanged("failed", "No memory.")]
    runner = Runner(None, tmp_path, make_events=lambda *_, **__: iter(events))
    with caplog.at_level(logging.INFO, "lora_train"):
        runner.start(TrainConfig())
        runner.wait(10)
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", "Another model is loaded."),
        ("ERROR", "No memory."),
    ]


def test_long_curve_is_averaged_to_few_points() -> None:
    points = [(step, float(step % 2)) for step in range(1, 10_001)]
    short = downsample(points, 1000)
    assert len(short) == 1000
    assert short[-1] == (10_000, 0.5) and all(loss == 0.5 for _, loss in short)
    uneven = [(10, 1.0), (20, 2.0), (30, 6.0), (40, 4.0), (50, 11.0)]
    assert downsample(uneven, 2) == [(20, 1.5), (50, 7.0)], "means of 2 and 3 points, each at its last step"
    assert downsample(uneven, 5) == uneven


# --- a disk that is full ---------------------------------------------------------------------------


class FullDisk:
    """Fails every write to a file once it is full; so the files of the run itself stay as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.is_full = True
        original = Path.open

        def open_file(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if self.is_full and path.name in names and any(letter in mode for letter in "aw"):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            return original(path, mode, *arguments, **options)

        monkeypatch.setattr(Path, "open", open_file)


def test_log_on_a_full_disk_is_a_warning_and_is_completed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch, "events.jsonl")
    events: list[Event] = [StateChanged("running"), *(Noted("hint", "", str(number)) for number in range(3))]

    def make(*_: object, **__: object) -> Iterator[Event]:
        yield from events
        disk.is_full = False
        yield StateChanged("finished")

    runner = Runner(None, tmp_path, make_events=make)
    run = runner.start(TrainConfig())
    runner.wait(10)
    assert runner.status()["state"] == "finished"
    warnings = [event for event in runner.status()["events"] if event.get("level") == "warning"]
    assert len(warnings) == 1 and "No space left" in warnings[0]["message"]
    logged = [record["kind"] for record in read_log(tmp_path / run / "events.jsonl")]
    assert len(logged) == len(events) + 2, "what could not be written follows, with the warning"
    assert runner.start(TrainConfig()) != run


def test_failure_on_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FullDisk(monkeypatch, "events.jsonl", "crash.txt")

    def broken(*_: object, **__: object) -> Iterator[Event]:
        yield StateChanged("running")
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    runner = Runner(None, tmp_path, make_events=broken)
    runner.start(TrainConfig())
    runner.wait(10)
    status = runner.status()
    assert status["state"] == "failed" and "somewhere: No space left" in status["message"]
    runner.start(TrainConfig())


@pytest.mark.parametrize(
    ("values", "is_read"),
    [
        ({"family": "lora"}, True),
        ({"family": "lokr"}, True),
        ({"family": "lokr", "tucker": True, "targets": "all"}, False),
        ({"family": "ia3"}, False),
        ({"family": "oft"}, False),
        ({"family": "boft"}, False),
    ],
)
def test_the_status_says_what_to_convert_files_to(tmp_path: Path, values: dict[str, Any], is_read: bool) -> None:
    """The page offers to convert the others, and the plan warns of them: both ask the same table."""
    runner = Runner(None, tmp_path, make_events=lambda *_, **__: iter([StateChanged("finished")]))
    config = TrainConfig(**values)
    runner.start(config)
    runner.wait(10)
    assert runner.status()["convert_to"] == ([] if is_read else ["diff", "lora"])
    assert bool(list(form_problems(config, ""))) is not is_read
    runner.start(config.replace(files_for_webui=True))
    runner.wait(10)
    assert not runner.status()["convert_to"], "the run saves what is read"


def test_run_without_an_ending_is_not_running_for_ever(tmp_path: Path) -> None:
    runner = Runner(None, tmp_path, make_events=lambda *_, **__: iter([StateChanged("running")]))
    runner.start(TrainConfig())
    runner.wait(10)
    assert runner.status()["state"] == "finished"


def test_records_after_a_line_cut_short_stay_whole(tmp_path: Path) -> None:
    """A killed process leaves half a line; the next record must not be appended to it."""
    log = tmp_path / "events.jsonl"
    log.write_text('{"kind": "StateChanged", "sta', encoding="utf-8")
    EventLog(log).append(log_record(StateChanged("finished")))
    assert [record["state"] for record in read_log(log)] == ["finished"]
    assert list(read_lines(log)).count(None) == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"kind":"Planned"}',
        '{"kind":"LoraWritten","path":7,"epoch":1,"step":2}',
        '{"kind":"StateChanged","state":"odd","message":""}',
        '{"kind":"EpochDone","epoch":"one","step":1,"mean_loss":1}',
        '{"kind":"Measured","epoch":1,"values":{"a":"b"}}',
        '{"kind":[]}',
        "[" * 5000,
        "7",
        "{",
    ],
)
def test_records_that_do_not_fit_are_left_out_and_counted(line: str, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text(log_line(log_record(StateChanged("running"))) + line + "\n", encoding="utf-8")
    assert [record["kind"] for record in read_log(log)] == ["StateChanged"]
    assert list(read_lines(log)).count(None) == 1


def test_log_takes_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    event = LoraWritten("/models/\udc83e\udc83X.safetensors", 1, 2)
    EventLog(tmp_path / "log").append(log_record(event))
    (record,) = read_log(tmp_path / "log")
    assert from_record(record) == event
