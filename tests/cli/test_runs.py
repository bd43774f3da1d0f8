"""Several runs one after the other, and resumed runs, on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.cli import main as cli
from lib_lora_train.core.errors import OutputError, TrainingError
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts.standalone import StandaloneHost
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

    def train(_: Any, config: Any) -> bool:
        started.append(config.output_name)
        if config.output_name == "one":
            raise TrainingError("Step 1: the loss is not a number any more.")
        return True

    monkeypatch.setattr(cli, "_train", train)
    status = cli.main(["train", *map(str, settings), "--rank", "3"])
    assert started == ["one", "two"] and status == cli.EXIT_USER_ERROR
    errors = capsys.readouterr().err
    assert "the loss is not a number" in errors and "1 of 2 runs failed: one" in errors


def test_stop_ends_all_runs(settings: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def stopped(_: Any, config: Any) -> bool:
        started.append(config.output_name)
        return False

    monkeypatch.setattr(cli, "_train", stopped)
    assert cli.main(["train", *map(str, settings)]) == cli.EXIT_INTERRUPTED
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
