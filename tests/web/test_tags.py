"""The report on tags of past runs: shown with its images, measured on request, and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import DataError, HostError
from lib_lora_train.core.events import Event, PhaseStarted, Progress
from lib_lora_train.runs.measures import tag_report
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.routes import PREFIX, install_routes, make_api
from lib_lora_train.web.session import Session
from lib_lora_train.web.tags import TagReportSession
from tests.cli.test_tags import run_with_tags
from tests.web.test_runs import session_with_a_run


def _session_with_tags(tmp_path: Path) -> tuple[Session, RunFolder]:
    session, _, folder = session_with_a_run(tmp_path)
    config = folder.config.read_text(encoding="utf-8")
    run_with_tags(folder.root)
    folder.config.write_text(config, encoding="utf-8")
    for prompt in ("zok", "zok, hat"):
        for number in (1, 2):
            path = folder.tag_image("zok", prompt, number)
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), "red").save(path)
    return session, folder


def test_tags_are_shown_with_what_became_of_them(tmp_path: Path) -> None:
    session, folder = _session_with_tags(tmp_path)
    shown = session.run_action("tags-show", {"run": folder.root.name})
    assert [one["tag"] for one in shown["tags"]] == ["hat", "sun", "cape"]
    assert shown["epoch"] == 3 and shown["can_measure"]
    hat, sun, cape = shown["tags"]
    assert hat["steals"] and hat["stands_out"] and sun["verdict"] == "ignored"
    assert cape["having"] is None and hat["having"] == pytest.approx(0.91)


def test_a_run_that_is_not_measured_shows_none(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    assert session.run_action("tags-show", {"run": folder.root.name}) == {"epoch": 0, "tags": [], "can_measure": True}


def test_one_click_shows_the_trigger_alone_and_with_the_tag(tmp_path: Path) -> None:
    session, folder = _session_with_tags(tmp_path)
    rows = session.run_action("tags-images", {"run": folder.root.name, "prompt": "zok, hat"})["rows"]
    assert [(row["prompt"], len(row["images"])) for row in rows] == [("zok", 2), ("zok, hat", 2)]
    assert session.image_tokens.path_of(rows[1]["images"][1]) == folder.tag_image("zok", "zok, hat", 2)
    folder.tag_image("zok", "zok", 1).unlink()
    rows = session.run_action("tags-images", {"run": folder.root.name, "prompt": "zok, hat"})["rows"]
    assert len(rows[0]["images"]) == 1
    with pytest.raises(DataError, match="does not belong to the run"):
        session.run_action("tags-images", {"run": folder.root.name, "prompt": "/etc/passwd"})


def test_other_programs_get_the_same_over_http(tmp_path: Path) -> None:
    session, folder = _session_with_tags(tmp_path)
    app = make_api()
    install_routes(app, session)
    client = TestClient(app)
    found = client.get(f"{PREFIX}/tags", params={"run": folder.root.name}).json()
    assert found["tags"][0]["tag"] == "hat" and found["epoch"] == 3
    assert client.get(f"{PREFIX}/tags", params={"run": "none"}).status_code == 409
    assert client.post(f"{PREFIX}/tags/status", json={}).json()["state"] == "idle"
    assert client.post(f"{PREFIX}/tags/cancel", json={}).status_code == 200


# --- measuring ------------------------------------------------------------------------------------


def _session(tmp_path: Path, active: str = "") -> TagReportSession:
    runner: Any = SimpleNamespace(host=None, active_run=active, note=lambda *_: None)
    return TagReportSession(runner, ImageTokens(), lambda _: RunFolder(tmp_path / "run"))


def _measure_with(monkeypatch: pytest.MonkeyPatch, *events: Event) -> list[list[str]]:
    """Measuring makes these events until it is stopped; the tags that were asked for."""
    asked: list[list[str]] = []

    def work(_folder: RunFolder, _host: object, control: Control, also: list[str]) -> Iterator[Event]:
        asked.append(also)
        for event in events:
            yield event
            if control.is_stopped:
                raise RunStoppedError

    monkeypatch.setattr(tag_report, "measure_tags", work)
    return asked


def test_progress_is_counted_in_images_and_a_rare_tag_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _measure_with(monkeypatch, PhaseStarted("samples", 8), Progress("samples", 8, 8))
    session = _session(tmp_path)
    session.start({"run": "run", "tag": "cape"})
    session.task.wait(30)
    status = session.status({})
    assert (status["state"], status["run"], status["done"], status["total"]) == ("done", "run", 8, 8)
    assert "images drawn" in status["line"]
    session.start({"run": "run", "tag": ""})
    session.task.wait(30)
    assert asked == [["cape"], []]


def test_a_stop_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _measure_with(monkeypatch, Progress("samples", 1, 8), Progress("samples", 2, 8))
    session = _session(tmp_path)
    monkeypatch.setattr(session.task, "is_stopped", lambda: True)
    session.start({"run": "run"})
    session.task.wait(30)
    assert session.status({})["done"] == 1


def test_it_waits_for_a_training_to_end(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="A training is running"):
        _session(tmp_path, active="other").start({"run": "run"})
