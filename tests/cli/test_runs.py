"""Several runs one after the other, and resumed runs, on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.cli import main as cli
from lib_lora_train.cli import training as cli_training
from lib_lora_train.core.errors import OutputError, TrainingError
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.loading import load_model
from lib_lora_train.runs import checkpoints
from tests.stand_ins.run_parts import NO_SAMPLES, small_run_setup


@pytest.fixture
def settings(demo_dir: Path, tmp_path: Path) -> list[Path]:
    """Two settings files with one epoch each."""
    host = StandaloneHost(None, None, tmp_path, "cpu")
    config = small_run_setup(host, demo_dir, tmp_path).config.replace(epochs=1, **NO_SAMPLES, lr_schedule="constant")
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.toml")
        write_toml_config(files[-1], config.replace(output_name=name))
    return files


def test_failing_run_does_not_stop_the_next(
    settings: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def train(_: Any, config: Any, **__: Any) -> bool:
        started.append(config.output_name)
        if config.output_name == "one":
            raise TrainingError("Step 1: the loss is not a number any more.")
        return True

    monkeypatch.setattr("lib_lora_train.cli.training.train_run", train)
    status = cli.main(["train", *map(str, settings), "--rank", "3"])
    assert started == ["one", "two"] and status == cli.EXIT_USER_ERROR
    errors = capsys.readouterr().err
    assert "the loss is not a number" in errors and "1 of 2 runs failed: one" in errors


def test_stop_ends_all_runs(settings: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def stopped(_: Any, config: Any, **__: Any) -> bool:
        started.append(config.output_name)
        return False

    monkeypatch.setattr("lib_lora_train.cli.training.train_run", stopped)
    assert cli.main(["train", *map(str, settings)]) == cli_training.EXIT_INTERRUPTED
    assert started == ["one"]


def test_invalid_settings_in_any_file_are_reported_before_the_first_run(
    settings: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    settings[1].write_text("rank = 0\n", encoding="utf-8")
    assert cli.main(["train", *map(str, settings)]) == cli.EXIT_USER_ERROR
    assert "rank" in capsys.readouterr().err


def test_a_run_that_ends_for_a_full_disk_says_how_it_goes_on(
    settings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutputError("The disk is full. Free some and save again.")

    out = tmp_path / "my out"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_adapter", full)
        assert cli.main(["train", str(settings[0]), "--out", str(out)]) == cli.EXIT_USER_ERROR
    message, _, command = capsys.readouterr().err.strip().partition("Then continue with: python launch.py ")
    assert "Free some and save again." in message
    assert cli.main(shlex.split(command)) == 0
    assert [path.stem for path in (out / "models" / "Lora").glob("*.safetensors")] == ["one-000001"]


def test_finished_run_is_extended(settings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(settings[0]), "--out", str(tmp_path / "out")]) == 0
    (folder,) = (tmp_path / "out" / "outputs").glob("*-one")
    loras = tmp_path / "out" / "models" / "Lora"
    assert cli.main(["resume", str(folder)]) == cli.EXIT_USER_ERROR
    assert "3 steps were planned and done" in capsys.readouterr().err
    assert cli.main(["resume", str(folder), "--more-epochs", "1"]) == 0
    assert sorted(path.stem for path in loras.glob("*.safetensors")) == ["one-000001", "one-000002"]
    assert cli.main(["train", str(settings[0]), "--resume", str(folder), "--epochs", "3"]) == 0
    assert sorted(path.stem for path in loras.glob("*.safetensors")) == [f"one-00000{n}" for n in (1, 2, 3)]
    assert cli.main(["train", *map(str, settings), "--resume", str(folder)]) == cli.EXIT_USER_ERROR


def test_a_sweep_trains_every_combination_with_one_model_and_prints_the_comparison(
    settings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[int] = []

    def load(*given: Any) -> Any:
        loads.append(1)
        return load_model(*given)

    monkeypatch.setattr("lib_lora_train.hosts.standalone.load_model", load)
    words = ["sweep", str(settings[0]), "--vary", "rank=2,4", "--out", str(tmp_path / "out"), "--cpu"]
    assert cli.main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == ["one-rank2: rank 2", "one-rank4: rank 4"]
    assert not (tmp_path / "out").exists()
    assert cli.main(words) == 0 and loads == [1]
    table = capsys.readouterr().out.split("\n")
    head = next(number for number, line in enumerate(table) if line.startswith("run "))
    assert [line.split()[1] for line in table[head : head + 3]] == ["rank", "2", "4"]
    names = sorted(path.name for path in (tmp_path / "out" / "models" / "Lora").glob("*.safetensors"))
    assert names == ["one-rank2-000001.safetensors", "one-rank4-000001.safetensors"]
    assert cli.main(["sweep", "--resume", "--out", str(tmp_path / "out"), "--cpu"]) == 0, "nothing is left to train"
    assert loads == [1]
    run = next((tmp_path / "out" / "outputs").glob("*-one-rank2"))
    assert cli.main(["sweep", str(run), "--vary", "leave_out_images=01.png", "--dry-run"]) == 0
    assert cli.main(["compare", str(run), str(tmp_path)]) == 2
    assert "is not a run. Give" in capsys.readouterr().err


def test_a_sweep_goes_on_with_what_is_missing_and_after_a_failure(
    settings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[int] = []

    def train(_: Any, config: Any, *, folder: Any, host: Any) -> bool:
        started.append(config.rank)
        (folder.log).write_text("", encoding="utf-8")
        if config.rank == 2:
            raise TrainingError("Step 1: the loss is not a number any more.")
        return bool(config.rank != 4)

    monkeypatch.setattr("lib_lora_train.cli.sweep.train_run", train)
    words = ["sweep", str(settings[0]), "--vary", "rank=2,4,8", "--out", str(tmp_path / "out")]
    assert cli.main(words) == cli_training.EXIT_INTERRUPTED
    printed = capsys.readouterr()
    assert started == [2, 4] and "the loss is not a number" in printed.err and "sweep --resume" in printed.out
    cli.main(["sweep", "--resume", "--out", str(tmp_path / "out")])
    assert started == [2, 4, 2, 4]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--rank", "8"], "--rank"),
        (["--no-make-grid"], "--make-grid"),
        (["--folder", "images"], "--folder"),
        (["--preset", "style"], "--preset"),
        (["--vary", "rank=2,4"], "--vary"),
        (["--dry-run"], "--dry-run"),
        (["other.toml"], "other.toml"),
    ],
)
def test_a_resumed_sweep_refuses_what_it_would_ignore(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "--resume", "a-sweep", *words, "--out", str(tmp_path / "out")]) == 2
    assert f"Error: {named} has no effect on a sweep that is resumed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_cannot_be_trained_is_refused_before_anything_is_written(
    settings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for vary, reason in (("rank=2,many", "not a whole number"), ("rank", "has no values"), ("rank=2", "single value")):
        assert cli.main(["sweep", str(settings[0]), "--vary", vary, "--out", str(tmp_path / "out")]) == 2
        assert reason in capsys.readouterr().err
    assert cli.main(["sweep", "--resume", "--out", str(tmp_path / "out")]) == 2
    assert "no sweep to continue" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
