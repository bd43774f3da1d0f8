"""What the commands that measure a past run share: its folder, the progress, and the log that keeps what was found."""

from __future__ import annotations

import io
from collections.abc import Generator
from pathlib import Path

import pytest

from lib_lora_train.cli import past_run
from lib_lora_train.cli.main import main
from lib_lora_train.cli.past_run import measure
from lib_lora_train.core.events import Advised, Event, ImagesRated, PhaseStarted, Progress, TagsRated
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder

COMMANDS = ["advise", "images", "tags", "grid", "resume", "report", "compare", "train --resume"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_run_is_named_with_what_to_give(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(past_run, "PROJECT_ROOT", tmp_path)
    asked = [*command.split(), str(tmp_path / "none")]
    assert main(asked) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'none'} is not a run. Give the folder of one: outputs/DATE-NAME.\n" in error
    for number in range(7):
        run_folder(tmp_path / "outputs" / f"2026010{number}-120000-a")
    assert main(asked) == 2
    newest = ", ".join(f"2026010{number}-120000-a" for number in (6, 5, 4, 3, 2))
    assert f"outputs/DATE-NAME. The newest in {tmp_path / 'outputs'}: {newest}.\n" in capsys.readouterr().err


def run_folder(root: Path) -> RunFolder:
    """A folder with an empty log."""
    root.mkdir(parents=True)
    folder = RunFolder(root)
    folder.log.touch()
    return folder


def test_a_run_is_found_by_its_name_in_outputs_and_a_folder_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past_run, "PROJECT_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    named = run_folder(tmp_path / "outputs" / "20260101-120000-a")
    assert past_run.find_run(Path("20260101-120000-a")).root == named.root
    assert past_run.find_run(Path("outputs/20260101-120000-a")).root == named.root
    here = run_folder(tmp_path / "20260101-120000-a")
    assert past_run.find_run(Path("20260101-120000-a")).root == here.root


def test_a_run_without_settings_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "run")
    assert main(["advise", str(folder.root)]) == 2
    assert f"{folder.root} has no settings" in capsys.readouterr().err


def test_what_was_measured_is_logged_progress_is_only_shown_and_the_result_is_returned(tmp_path: Path) -> None:
    def work() -> Generator[Event, None, str]:
        yield PhaseStarted("evaluate", 2)
        yield Progress("evaluate", 2, 2)
        yield ImagesRated(1, 2, {})
        yield TagsRated(1, 1, {"learnt": 1}, {})
        yield Advised(1, 1.0, True, ("It is the most like.",))
        return "found"

    folder, shown = RunFolder(tmp_path), io.StringIO()
    assert measure(work(), folder, shown) == "found"
    assert [record["kind"] for record in read_log(folder.log)] == ["ImagesRated", "TagsRated", "Advised"]
    assert "Use epoch 1 at strength 1." in shown.getvalue()
