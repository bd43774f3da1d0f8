"""The doctor in the Dataset panel: findings by kind, remedies that keep the originals, undo."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.core.background_task import BackgroundTask
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools import image_cache as patients
from lib_lora_train.dataset_tools.image_cache import inspect_image
from lib_lora_train.web.session import Session
from tests.stand_ins.ui import open_small_session, write_images


def sick_session(tmp_path: Path) -> Session:
    """A session whose folder holds a transparent image, one without caption, a repeated one and a broken one."""
    session, _ = open_small_session(tmp_path)
    folder = tmp_path / "sick"
    folder.mkdir()
    for name, colour in (("a", (200, 30, 30, 255)), ("b", (30, 200, 30, 90))):
        image = Image.radial_gradient("L").resize((300, 300))
        Image.merge("RGBA", [image.point(lambda v, c=c: v * c // 255) for c in colour]).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("zkw", encoding="utf-8")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "d.png").write_bytes(b"no image")
    session.save_draft({**session.demo_form(), "concepts": json.dumps([{"folder": str(folder), "trigger": "zkw"}])})
    return session


def kinds(answer: dict[str, Any]) -> dict[str, int]:
    return {one["kind"]: one["count"] for one in answer["kinds"]}


def asked(session: Session, name: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is found once it is done."""
    session.run_action(f"checkup-{name}", values or {})
    session.checkup.work.wait(120)
    found: dict[str, Any] = session.run_action("checkup-status", {})["found"]
    return found


def test_findings_come_by_kind_the_gravest_first_with_their_images(tmp_path: Path) -> None:
    session = sick_session(tmp_path)
    answer = asked(session, "examine")
    assert {"broken", "duplicate", "transparent", "no caption"} <= set(kinds(answer))
    levels = [one["level"] for one in answer["kinds"]]
    assert levels == sorted(levels, key=("error", "warning", "hint").index)
    repeated = next(one for one in answer["kinds"] if one["kind"] == "duplicate")["findings"][0]
    assert len(repeated["tokens"]) == 2, "the image and the one it repeats"
    assert session.image_tokens.load_thumbnail(repeated["tokens"][1])


def test_a_remedy_treats_its_kind_only_keeps_the_originals_and_is_undone(tmp_path: Path) -> None:
    session = sick_session(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "sick").iterdir()}
    first = kinds(asked(session, "examine"))
    after = asked(session, "treat", {"kind": "transparent"})
    assert "transparent" not in kinds(after)
    assert kinds(after)["broken"] == first["broken"]
    assert Image.open(tmp_path / "sick" / "b.png").mode == "RGB"
    assert (tmp_path / "sick-originals" / "b.png").read_bytes() == before["b.png"]
    asked(session, "undo")
    assert {path.name: path.read_bytes() for path in (tmp_path / "sick").iterdir()} == before


def test_what_cannot_be_done_is_told(tmp_path: Path) -> None:
    session = sick_session(tmp_path)
    with pytest.raises(DataError, match="nothing to undo"):
        session.run_action("checkup-undo", {})
    with pytest.raises(DataError, match="Examine the folders again"):
        session.run_action("checkup-fix", {"kind": "transparent"})
    session.save_draft({**session.demo_form(), "concepts": "[{}]"})
    with pytest.raises(DataError, match="No folder"):
        session.run_action("checkup-run", {})


def test_a_healthy_set_has_no_findings(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    folder = write_images(tmp_path / "well", 1, size=(600, 600))
    session.save_draft({**session.demo_form(), "concepts": json.dumps([{"folder": str(folder)}])})
    answer = asked(session, "examine")
    assert (answer["images"], answer["kinds"]) == (1, [])


def test_tiny_images_are_upscaled_by_what_there_is_and_undone(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    image = tmp_path / "set" / "000.png"
    session.save_draft({**session.demo_form(), "resolution": 256})
    before = image.read_bytes()
    tiny = next(one for one in asked(session, "examine")["kinds"] if one["kind"] == "tiny")
    assert tiny["upscalers"] == ["Lanczos"], "stand-alone there is nothing else"
    answer = asked(session, "upscale", {"upscaler": "Lanczos"})
    with Image.open(image) as larger:
        assert larger.width * larger.height >= 256**2
    assert "tiny" not in kinds(answer) and answer["undo"] == 1 and not answer["failed"]
    asked(session, "undo")
    assert image.read_bytes() == before


def test_the_webuis_upscalers_are_offered_and_a_failing_one_changes_nothing(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.host.upscaler_names = lambda: ("4x", "Lanczos")
    session.save_draft({**session.demo_form(), "resolution": 256})
    before = (tmp_path / "set" / "000.png").read_bytes()
    tiny = next(one for one in asked(session, "examine")["kinds"] if one["kind"] == "tiny")
    assert tiny["upscalers"] == ["4x", "Lanczos"]
    answer = asked(session, "upscale", {"upscaler": "4x"})  # the stand-alone host refuses it
    assert "could not be" in answer["told"] and answer["failed"] and answer["undo"] == 0
    assert (tmp_path / "set" / "000.png").read_bytes() == before


class Gate:
    """Stands in for looking at an image: each waits until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._turn = threading.Semaphore(0)
        self.seen: list[str] = []
        monkeypatch.setattr(patients, "inspect_image", self._look_at)

    def _look_at(self, path: Path) -> patients.ImageFacts | str:
        self._turn.acquire(timeout=60)
        self.seen.append(path.name)
        return inspect_image(path)

    def let_through(self, number: int) -> None:
        self._turn.release(number)


def until(session: Session, done: int) -> dict[str, Any]:
    """The status once so many images are counted."""
    status: dict[str, Any] = {}
    for _ in range(6000):
        status = session.run_action("checkup-status", {})
        if status["done"] >= done:
            break
        threading.Event().wait(0.01)
    return status


def test_an_examination_counts_lets_the_page_go_on_and_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = open_small_session(tmp_path, images=30)
    session.save_draft(session.demo_form())
    gate = Gate(monkeypatch)
    assert session.run_action("checkup-run", {})["state"] == "busy", "the answer does not wait for the images"
    gate.let_through(12)
    status = until(session, 12)
    assert (status["state"], status["done"], status["total"], status["found"]) == ("busy", 12, 30, None)
    assert status["line"] == "12 of 30 images looked at"
    assert session.scan(session.demo_form()).plan, "the rest of the page is answered meanwhile"
    assert session.run_action("checkup-run", {})["done"] == 12, "a second page joins in"
    with pytest.raises(DataError, match="nothing to do"):
        session.run_action("checkup-fix", {"kind": "tiny"})
    session.run_action("checkup-stop", {})
    gate.let_through(30)
    session.checkup.work.wait(60)
    status = session.run_action("checkup-status", {})
    assert status["state"] == "stopped" and 12 <= status["found"]["images"] < 30
    assert f"Stopped: {status['done']} of 30 images were looked at" in status["found"]["told"]
    again = asked(session, "examine")
    assert again["images"] == 30 and len(gate.seen) == 30 == len(set(gate.seen)), "none is looked at twice"
    assert again["told"] == ""


def test_a_stopped_remedy_leaves_the_others_and_what_is_done_can_be_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, runner = open_small_session(tmp_path, images=5)
    session.save_draft({**session.demo_form(), "resolution": 256})
    images = [tmp_path / "set" / f"{n:03}.png" for n in range(5)]
    before = [image.read_bytes() for image in images]

    def enlarge(image: Image.Image, size: tuple[int, int], _name: str) -> Image.Image:
        counted.append(session.run_action("checkup-status", {})["line"])
        if len(counted) == 2:
            session.run_action("checkup-stop", {})
        return image.resize(size)

    counted: list[str] = []
    runner.host.upscaler_names = lambda: ("4x",)
    runner.host.upscale = enlarge
    asked(session, "examine")
    told = asked(session, "upscale", {"upscaler": "4x"})
    assert counted == ["0 of 5 images enlarged", "1 of 5 images enlarged"]
    assert "2 files treated." in told["told"] and "Stopped: 3 are left as before." in told["told"]
    assert kinds(told)["tiny"] == 3 and told["undo"] == 1
    asked(session, "undo")
    assert [image.read_bytes() for image in images] == before


def test_a_folder_that_is_gone_is_told_and_another_examination_is_possible(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    session.save_draft({**session.demo_form(), "concepts": json.dumps([{"folder": str(tmp_path / "gone")}])})
    asked(session, "examine")
    status = session.run_action("checkup-status", {})
    assert status["state"] == "failed" and "cannot be read" in status["message"]
    session.save_draft(session.demo_form())
    assert asked(session, "examine")["images"] == 3


def test_the_time_left_is_that_of_the_last_seconds() -> None:
    now = 0.0
    work = BackgroundTask("doctor", clock=lambda: now)
    work.start_phase("images looked at", 5000)
    for done in range(1, 1241):
        now += 0.032
        work.report(done)
    assert work.status()["line"] == "1,240 of 5,000 images looked at, about 2 min left"


def test_remembered_images_do_not_promise_that_the_rest_is_as_quick() -> None:
    now = 0.0
    work = BackgroundTask("doctor", clock=lambda: now)
    work.start_phase("images looked at", 1000)
    for done in range(1, 901):
        now += 0.001
        work.report(done)
    assert work.status()["line"] == "900 of 1,000 images looked at"
    for done in range(901, 961):
        now += 1
        work.report(done)
    assert work.status()["line"] == "960 of 1,000 images looked at, about 40 s left"
