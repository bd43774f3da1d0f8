"""The images of a run by their losses on the page and over HTTP: shown, measured on request, and left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import DataError, HostError
from lib_lora_train.core.events import Event, ImagesRated
from lib_lora_train.evaluation.image_excess import ImageLoss
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.measures.image_list import ImageList, write_images
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.trainer import run_training
from lib_lora_train.web.form import read_form
from lib_lora_train.web.image_losses import ImageLossSession, shortest_pattern
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.routes import PREFIX, install_routes, make_api
from lib_lora_train.web.session import Session
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, small_run_setup
from tests.web.test_runs import session_with_a_run


def session_with_losses(tmp_path: Path) -> tuple[Session, RunFolder]:
    """A session with a run whose images are measured, two of which are gone; the loss of the last one did not fall."""
    session, _, folder = session_with_a_run(tmp_path)
    paths = [tmp_path / "set" / name for name in ("gone.png", "lost.png", "000.png", "001.png", "002.png")]
    images = [
        ImageLoss(str(path), str(path.parent), (0.1, 0.02), (0.15, 0.03), (0.2, 0.04), ((str(paths[2]), 0.5),))
        for path in paths
    ]
    images[-1] = replace(images[-1], trained=(0.2, 0.04))
    write_images(folder, ImageList(2, tuple(images), {str(path): f"zkw, {path.stem}" for path in paths}))
    return session, folder


def applied(session: Session, form: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The form after the staged change, and the message."""
    return session.changes.pop(form)


def test_the_images_of_a_run_are_shown_with_the_reason_first_what_stands_out(tmp_path: Path) -> None:
    session, folder = session_with_losses(tmp_path)
    shown = session.run_action("image-losses-show", {"run": folder.root.name})
    assert (shown["epoch"], shown["can_measure"], len(shown["images"])) == (2, True, 5)
    first = shown["images"][0]
    assert Path(first["path"]).name == "002.png" and first["stands_out"] and first["caption"] == "zkw, 002"
    assert first["sentence"].startswith("Its loss stayed, the others' fell by 50%")
    assert first["loss"] == pytest.approx(0.12) and first["excess"] > 0.5
    assert session.image_tokens.path_of(first["token"]) == Path(first["path"])
    assert session.image_tokens.path_of(first["nearest"][0]["token"]) == tmp_path / "set" / "000.png"


def test_images_that_are_gone_are_shown_without_a_picture(tmp_path: Path) -> None:
    session, folder = session_with_losses(tmp_path)
    (tmp_path / "set" / "002.png").unlink()
    assert session.run_action("image-losses-show", {"run": folder.root.name})["images"][0]["token"] == ""


def test_a_run_that_is_not_measured_shows_none(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    shown = session.run_action("image-losses-show", {"run": folder.root.name})
    assert shown == {"epoch": 0, "images": [], "total": 0, "standing_out": 0, "can_measure": True}


def test_the_page_gets_the_first_images_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, folder = session_with_losses(tmp_path)
    monkeypatch.setattr("lib_lora_train.web.image_losses._SHOWN", 2)
    shown = session.run_action("image-losses-show", {"run": folder.root.name})
    assert (len(shown["images"]), shown["total"], shown["standing_out"]) == (2, 5, 1)
    assert len(session.run_action("image-losses-list", {"run": folder.root.name})["images"]) == 5


def test_an_image_is_left_out_of_the_settings_and_that_can_be_undone(tmp_path: Path) -> None:
    session, folder = session_with_losses(tmp_path)
    form = session.draft()
    for name in ("002.png", "000.png"):
        path = str(tmp_path / "set" / name)
        session.run_action("image-losses-leave-out", {"run": folder.root.name, "path": path})
        form, message = applied(session, form)
        assert message == f"The next run leaves set/{name} out."
    assert read_form(form)[0].leave_out_images == ("set/002.png", "set/000.png")
    session.run_action("image-losses-leave-out", {"run": folder.root.name, "path": str(tmp_path / "set" / "002.png")})
    again, message = applied(session, form)
    assert again == form and message == "set/002.png is left out already."
    session.run_action("form-undo", {})
    assert applied(session, again)[0] == form


def test_only_images_of_the_run_are_left_out(tmp_path: Path) -> None:
    session, folder = session_with_losses(tmp_path)
    with pytest.raises(DataError, match="does not belong to the run"):
        session.run_action("image-losses-leave-out", {"run": folder.root.name, "path": "/etc/passwd"})


@pytest.mark.parametrize(
    ("path", "others", "pattern"),
    [
        ("/d/10_zok/012.png", ["/d/10_zok/013.png"], "10_zok/012.png"),
        ("C:\\d\\10_zok\\012.png", ["C:\\d\\5_zok\\012.png"], "10_zok/012.png"),
        ("/a/x/1.png", ["/b/x/1.png"], "a/x/1.png"),
        ("/a/1.png", ["/b/a/1.png"], "/a/1.png"),
    ],
)
def test_the_shortest_path_that_fits_no_other_image_is_left_out(path: str, others: list[str], pattern: str) -> None:
    assert shortest_pattern(path, [path, *others]) == pattern


def test_other_programs_get_the_same_list_over_http(tmp_path: Path) -> None:
    session, folder = session_with_losses(tmp_path)
    app = make_api()
    install_routes(app, session)
    client = TestClient(app)
    found = client.get(f"{PREFIX}/image-losses", params={"run": folder.root.name}).json()
    assert Path(found["images"][0]["path"]).name == "002.png" and "token" not in found["images"][0]
    assert client.get(f"{PREFIX}/image-losses", params={"run": "none"}).status_code == 409
    assert client.post(f"{PREFIX}/image-losses/status", json={}).json()["state"] == "idle"
    assert client.post(f"{PREFIX}/image-losses/cancel", json={}).status_code == 200


# --- measuring ------------------------------------------------------------------------------------


class Measuring:
    """A session over a finished run."""

    def __init__(self, setup: RunSetup) -> None:
        self.setup = setup
        config = setup.config.replace(**NO_SAMPLES, epochs=1)
        list(log_events(run_training(config, setup.host, folder=setup.folder, control=Control()), setup.folder.log))
        self.kept: list[Event] = []
        note = lambda _run, *events: self.kept.extend(events)  # noqa: E731
        self.runner = SimpleNamespace(host=setup.host, active_run="", note=note)
        self.run = setup.folder.root.name
        self.session = ImageLossSession(self.runner, ImageTokens(), lambda _: setup.folder, lambda _: None)  # type: ignore[arg-type]


@pytest.fixture
def measuring(tmp_path: Path, demo_dir: Path) -> Measuring:
    return Measuring(small_run_setup(StandaloneHost(None, None, tmp_path, "cpu"), demo_dir, tmp_path))


def test_a_past_run_is_measured_on_request_and_shows_its_images_then(measuring: Measuring) -> None:
    assert measuring.session.start({})["run"] == measuring.run
    measuring.session.task.wait(120)
    assert measuring.session.status({})["state"] == "done"
    assert len(measuring.session.list_images({})["images"]) == 3
    assert [(type(one), one.epoch, one.total) for one in measuring.kept] == [(ImagesRated, 1, 3)]  # type: ignore[union-attr]


def test_stopping_ends_it_and_keeps_nothing(measuring: Measuring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.session.task, "wait", lambda *_: None)
    measuring.session.start({})
    measuring.session.stop({})
    measuring.session.task._thread.join(120)  # type: ignore[union-attr]
    assert measuring.session.status({})["state"] == "stopped"
    assert measuring.session.list_images({}) == {"epoch": 0, "images": []}


def test_a_run_that_is_training_and_another_model_beside_it_are_refused(measuring: Measuring) -> None:
    measuring.runner.active_run = measuring.run
    with pytest.raises(HostError, match="still training"):
        measuring.session.start({})
    measuring.runner.active_run = "other"
    measuring.runner.host = SimpleNamespace(run_target=lambda _: SimpleNamespace(is_loaded=False))
    with pytest.raises(HostError, match="other is training with another model"):
        measuring.session.start({})
