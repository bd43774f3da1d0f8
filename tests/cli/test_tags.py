"""The command `tags`: the report of a run, measured first if it is not yet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_lora_train.cli.main import main
from lib_lora_train.evaluation.tag_report import TagMeasure
from lib_lora_train.runs.measures.tag_list import TagList, tag_values, write_tags
from lib_lora_train.runs.records.folder import RunFolder


def run_with_tags(tmp_path: Path) -> tuple[RunFolder, TagList]:
    """A run whose `hat` is a thief and whose `sun` is ignored; `cape` was not drawn."""
    folder = RunFolder(tmp_path)
    folder.config.write_text("", encoding="utf-8")
    low, high = (0.1, 0.12), (0.9, 0.92)
    tags = [
        TagMeasure("zok", "sun", "zok, sun", 3, 20, 4.0, low, low, low, low, high),
        TagMeasure("zok", "hat", "zok, hat", 14, 20, 4.0, low, low, high, high, low),
        TagMeasure("zok", "cape", "zok, cape", 1, 20),
    ]
    found = TagList(3, "zok", {"zok": "zok"}, tuple(tags))
    write_tags(folder, found)
    return folder, found


def test_what_stands_out_is_printed_first_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_with_tags(tmp_path)
    assert main(["tags", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith(
        "14 of 20 !hat: zok alone shows 11% of what this tag stands for, with the tag it is 91%."
    )
    assert lines[1].startswith("3 of 20 !sun: Ignored")
    assert lines[2] == "1 of 20 cape: Not drawn."


def test_json_is_what_the_http_api_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = run_with_tags(tmp_path)
    assert main(["tags", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"epoch": 3, "tags": tag_values(found)}


def test_what_is_no_run_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tags", str(tmp_path / "none")]) == 2
    assert "is not a run. Give" in capsys.readouterr().err
