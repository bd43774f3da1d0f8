"""Sweeps are trained by the queue: what they share, what a failure and a restart leave, and what is trained again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ConfigError, HostError, TrainingError
from lib_lora_train.core.events import EpochDone, Event, StateChanged
from lib_lora_train.dataset.scan import Dataset, read_dataset
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts import standalone
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.past_runs import past_runs
from lib_lora_train.runs.runner import Runner
from lib_lora_train.runs.sweeps.sweep_record import Sweep, find_members
from lib_lora_train.runs.sweeps.sweep_runs import (
    count_steps,
    plan_sweep,
    queue_members,
    read_comparison,
    record_sweep,
    start_waiting,
)
from tests.paths import ROOT
from tests.stand_ins.run_parts import NO_SAMPLES, small_run_setup
from tests.stand_ins.ui import small_config, write_images

CONFIG = TrainConfig(concepts=(Concept(str(ROOT / "assets" / "demo" / "train"), trigger="zorp"),), seed=1)


class FakeRuns:
    """Makes the events of fake runs that write their settings; those with the seeds in `failing` fail."""

    def __init__(self, *failing: int) -> None:
        self.failing = set(failing)
        self.started: list[int] = []
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(
        self, config: TrainConfig, host: Any, *, folder: RunFolder, control: Control, **_: object
    ) -> Iterator[Event]:
        self.started.append(config.seed)
        write_toml_config(folder.config, config)
        yield StateChanged("running")
        self.begun.set()
        self.gate.wait(20)
        if config.seed in self.failing:
            raise TrainingError("Step 1: the loss is not a number any more.")
        yield EpochDone(1, 1, 0.5)
        yield StateChanged("stopped" if control.is_stopped else "finished")


def start_sweep(runner: Runner, seeds: str = "0 1 2", base: str = "") -> Sweep:
    plan = plan_sweep([("seed", seeds)], CONFIG, base)
    sweep = record_sweep(runner.home, plan, "zok")
    queue_members(runner, sweep)
    start_waiting(runner)
    return sweep


def states(runner: Runner, sweep: Sweep) -> list[str]:
    members = find_members(runner.home, sweep, runner.queue.entries(), runner.active_run)
    return [member.state for member in members]


def test_a_failed_run_does_not_stop_the_rest_and_can_be_repeated(tmp_path: Path) -> None:
    works = FakeRuns(1)
    runner = Runner(None, tmp_path, make_events=works)
    sweep = start_sweep(runner)
    runner.wait(20)
    assert works.started == [0, 1, 2] and states(runner, sweep) == ["finished", "failed", "finished"]
    works.failing.clear()
    assert queue_members(runner, sweep) == 1 and states(runner, sweep)[1] == "queued"
    assert queue_members(runner, sweep) == 0, "what waits is not queued twice"
    start_waiting(runner)
    runner.wait(20)
    assert works.started == [0, 1, 2, 1] and states(runner, sweep) == ["finished"] * 3
    members = find_members(tmp_path, sweep)
    shown = read_comparison(tmp_path, [member.run for member in members])
    assert shown.settings == ("seed",) and [row.settings["seed"] for row in shown.rows] == [0, 1, 2]


def test_a_sweep_goes_on_after_a_restart(tmp_path: Path) -> None:
    works = FakeRuns()
    works.gate.clear()
    runner = Runner(None, tmp_path, make_events=works)
    sweep = start_sweep(runner)
    works.begun.wait(20)
    again = Runner(None, tmp_path, make_events=FakeRuns())  # as if the first process was killed at this moment
    assert states(again, sweep) == ["interrupted", "queued", "queued"]
    assert queue_members(again, sweep) == 1 and states(again, sweep) == ["queued"] * 3
    again.start_queue()
    again.wait(20)
    assert states(again, sweep) == ["finished"] * 3
    works.gate.set()
    runner.wait(20)


def test_a_run_that_was_removed_from_the_queue_or_deleted_can_be_queued_again(tmp_path: Path) -> None:
    runner = Runner(None, tmp_path, make_events=FakeRuns())
    plan = plan_sweep([("seed", "0 1")], CONFIG)
    sweep = record_sweep(tmp_path, plan, "zok")
    assert states(runner, sweep) == ["missing", "missing"], "killed before the runs were queued"
    queue_members(runner, sweep)
    runner.queue.remove(runner.queue.entries()[0].id)
    assert states(runner, sweep) == ["missing", "queued"]
    assert queue_members(runner, sweep) == 1 and states(runner, sweep) == ["queued", "queued"]


def test_a_sweep_of_a_past_run_compares_it_and_does_not_train_it_again(tmp_path: Path) -> None:
    config = CONFIG
    plan = plan_sweep([("seed", "0 1 2")], config, "20260101-zok")
    assert [v.config.seed for v in plan.variants] == [0, 2] and plan.same and plan.same.config.seed == 1
    assert [v.config.seed for v in plan_sweep([("seed", "7")], config, "20260101-zok").variants] == [7]
    with pytest.raises(ConfigError, match="exactly these values"):
        plan_sweep([("seed", "1")], config, "20260101-zok")


def test_only_warnings_that_the_sweep_causes_are_named_with_the_values(tmp_path: Path) -> None:
    config = TrainConfig(concepts=(Concept("/set/zok", trigger="zok"),), output_name="zok", caption_dropout=0.5)
    plan = plan_sweep([("optimizer", "AdamW Prodigy"), ("learning_rate", "1e-4")], config)
    texts = [str(problem) for problem in plan.problems]
    assert any("(With optimizer Prodigy, learning_rate 1e-4.)" in text for text in texts)
    assert not any("caption_dropout" in text or "With optimizer AdamW" in text for text in texts)


def test_a_comparison_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="Start the queue"):
        read_comparison(tmp_path, [])


def test_each_folder_is_read_once_for_the_whole_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[TrainConfig] = []

    def read(config: TrainConfig) -> Dataset:
        reads.append(config)
        return read_dataset(config)

    monkeypatch.setattr("lib_lora_train.runs.sweeps.sweep_runs.read_dataset", read)
    config = small_config(write_images(tmp_path / "set", 3)).replace(epochs=2, batch_size=1)
    host = StandaloneHost(None, None, tmp_path / "Lora", "cpu")
    plan = plan_sweep([("rank", "2 4"), ("leave_out_images", "|000.png")], config)
    assert count_steps(plan, host, None) == 2 * (2 * 3 + 2 * 2) and len(reads) == 1
    with pytest.raises(ConfigError, match=r"/nowhere/a\.ckpt"):
        count_steps(plan_sweep([("checkpoint", " | /nowhere/a.ckpt")], config), host, None)


def test_the_runs_of_a_sweep_share_model_latents_and_text(
    demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run reads no checkpoint, and to train, neither the VAE nor a text encoder computes anything."""
    host = StandaloneHost(None, None, tmp_path / "unused", "cpu")
    setup = small_run_setup(host, demo_dir, tmp_path)
    only_training = {**NO_SAMPLES, "measure_steady_loss": False, "train_text_encoder": False}
    config = setup.config.replace(epochs=1, **only_training)
    model = host.load_model(config)
    now: list[str] = []
    counts: dict[str, list[str]] = {"load": [], "vae": [], "text": []}
    monkeypatch.setattr(standalone, "load_model", lambda *_: counts["load"].append(now[-1]))
    encode = model.vae.encode

    def counted(*values: Any, **named: Any) -> Any:
        counts["vae"].append(now[-1])
        return encode(*values, **named)

    monkeypatch.setattr(model.vae, "encode", counted)
    for encoder in model.text_encoders:
        encoder.register_forward_hook(lambda *_: counts["text"].append(now[-1]))
    from lib_lora_train.runs.trainer import run_training

    def make_events(config: TrainConfig, host: Any, **values: Any) -> Iterator[Event]:
        now.append(config.output_name)
        yield from run_training(config, host, **values)

    runner = Runner(host, tmp_path / "home", make_events=make_events)
    plan = plan_sweep([("rank", "2 4"), ("learning_rate", "1e-4")], config)
    sweep = record_sweep(runner.home, plan, config.output_name)
    queue_members(runner, sweep)
    start_waiting(runner)
    runner.wait(300)
    assert [run["state"] for run in past_runs(runner.home)] == ["finished", "finished"], runner.status()["message"]
    first, second = now
    assert counts["vae"].count(first) and counts["text"].count(first), "the first run encodes"
    assert {name: runs.count(second) for name, runs in counts.items()} == {"load": 0, "vae": 0, "text": 0}
    assert counts["load"] == []
