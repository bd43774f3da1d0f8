"""The runner: one run at a time in a thread, its events, curves and errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import Event, StateChanged, StepDone
from lib_lora_train.runs.folder import RunFolder
from lib_lora_train.runs.runner import Runner, downsample
from lib_lora_train.training.control import Control


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


def test_long_curve_is_averaged_to_few_points() -> None:
    points = [(step, float(step % 2)) for step in range(1, 10_001)]
    short = downsample(points, 1000)
    assert len(short) == 1000
    assert short[-1] == (10_000, 0.5) and all(loss == 0.5 for _, loss in short)
