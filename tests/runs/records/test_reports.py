"""Reports are up to date whenever something was measured, and never the reason why a run ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.events import Advised, ImagesRated
from lib_lora_train.evaluation.tag_report import TagMeasure
from lib_lora_train.runs.measures.tag_list import TagList, tag_values, tags_rated, write_tags
from lib_lora_train.runs.records import reports
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import new_run_folder, write_json
from lib_lora_train.runs.records.late_events import is_kept, keep_events
from lib_lora_train.runs.runner import Runner
from lib_lora_train.runs.sweeps.sweep_record import list_sweeps
from tests.runs.sweeps.test_sweep_runs import FakeRuns, start_sweep

_LOW, _HIGH = (0.1, 0.12), (0.9, 0.92)
_TAGS = TagList(
    3,
    "zok",
    {"zok": "zok"},
    (
        TagMeasure("zok", "sun", "zok, sun", 3, 20, 4.0, _LOW, _LOW, _LOW, _LOW, _HIGH),
        TagMeasure("zok", "cape", "zok, cape", 1, 20),
    ),
)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_report_of_a_sweep_has_every_run_with_its_settings_state_and_measures(tmp_path: Path) -> None:
    runner = Runner(None, tmp_path, make_events=FakeRuns(1))
    sweep = start_sweep(runner)
    runner.wait(20)
    report = _read(tmp_path / "sweeps" / sweep.id / "report.json")
    assert [(run["state"], run["changes"]) for run in report["runs"]] == [
        ("finished", {"seed": 0}),
        ("failed", {"seed": 1}),
        ("finished", {"seed": 2}),
    ]
    assert report["settings"] == ["seed"] and [row["settings"]["seed"] for row in report["rows"]] == [0, 1, 2]
    assert [row["epoch"] for row in report["rows"]] == [1, 0, 1]
    assert [one.id for one in list_sweeps(tmp_path)] == [sweep.id], "the report is not taken for a sweep"


def test_the_report_of_a_sweep_follows_an_advice_that_is_given_later(tmp_path: Path) -> None:
    runner = Runner(None, tmp_path, make_events=FakeRuns())
    sweep = start_sweep(runner, "0 1")
    runner.wait(20)
    path = tmp_path / "sweeps" / sweep.id / "report.json"
    run = _read(path)["runs"][0]["run"]
    path.unlink()
    runner.note(run, Advised(1, 1.25, True, ("It is the most like.",)))
    assert [row["why"] for row in _read(path)["rows"]] == ["recommended", "last epoch"]


def test_the_report_of_a_run_gets_the_tags_and_the_advice_that_were_measured_after_its_end(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path, "demo")
    write_json(folder.report, {"passed": True, "advice": None, "tags": [], "images": []})
    write_tags(folder, _TAGS)
    keep_events(folder, tags_rated(_TAGS), Advised(3, 1.0, True, ()))
    report = _read(folder.report)
    assert report["passed"] is True and report["tags"] == tag_values(_TAGS) and report["advice"]["epoch"] == 3


def test_a_run_without_a_report_gets_none(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path, "zok")
    keep_events(folder, ImagesRated(1, 4, {}))
    assert not folder.report.exists() and [record["kind"] for record in read_log(folder.log)] == ["ImagesRated"]


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_report_or_origin_ends_nothing(tmp_path: Path, text: str) -> None:
    folder = new_run_folder(tmp_path, "zok")
    for path in (folder.report, folder.origin):
        path.write_text(text, encoding="utf-8")
    keep_events(folder, ImagesRated(1, 4, {}))
    assert len(list(read_log(folder.log))) == 1


def test_a_report_that_cannot_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OutputError("No space left on device.")

    monkeypatch.setattr(reports, "write_json", fail)
    runner = Runner(None, tmp_path, make_events=FakeRuns())
    start_sweep(runner)
    runner.wait(20)
    assert [runner.status()["state"], runner.queued_runs()] == ["finished", []]


def test_the_log_counts_the_tags_by_verdict_and_names_those_that_stand_out() -> None:
    found = tags_rated(_TAGS)
    assert (found.epoch, found.total, found.verdicts) == (3, 2, {"ignored": 1, "rare": 1})
    assert list(found.standing_out) == ["sun"] and found.standing_out["sun"].startswith("Ignored")
    assert is_kept(found)


def test_tags_of_several_triggers_are_named_with_their_trigger() -> None:
    other = TagMeasure("mip", "sun", "mip, sun", 3, 20, 4.0, _LOW, _LOW, _LOW, _LOW, _HIGH)
    found = tags_rated(TagList(3, "zok", {"zok": "zok", "mip": "mip"}, (_TAGS.tags[0], other)))
    assert sorted(found.standing_out) == ["mip: sun", "zok: sun"]


def test_the_folder_of_a_report_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    runner = Runner(None, tmp_path, make_events=FakeRuns())
    sweep = start_sweep(runner, "0 1")
    runner.wait(20)
    place = tmp_path / "sweeps" / sweep.id
    shutil.rmtree(place)
    place.write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be created"):
        reports.write_sweep_report(tmp_path, sweep)
