"""What the commands that measure a past run share: its folder, the progress, and the log that keeps what was found."""

from __future__ import annotations

import io
from collections.abc import Generator
from pathlib import Path

import pytest

from lib_lora_train.cli.main import main
from lib_lora_train.cli.past_run import measure
from lib_lora_train.core.events import Advised, Event, ImagesRated, PhaseStarted, Progress, TagsRated
from lib_lora_train.runs.event_log import read_log
from lib_lora_train.runs.folder import RunFolder


@pytest.mark.parametrize("command", ["advise", "images", "tags", "grid"])
def test_what_is_no_run_folder_is_named_with_what_to_give(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'none'} is not a run folder. Give the run's folder: outputs/DATE-NAME." in error


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
