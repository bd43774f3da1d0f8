"""The dataset check on the server: findings by kind, repairs that keep the originals, undo."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools import image_cache
from lib_lora_train.dataset_tools.image_cache import inspect_image
from lib_lora_train.web.checkup import CheckupSession
from lib_lora_train.web.session import Session
from tests.stand_ins.ui import open_small_session, write_images


def faulty_session(tmp_path: Path) -> Session:
    """A session whose folder holds a transparent image, one without caption, a duplicate and a broken one."""
    session, _ = open_small_session(tmp_path)
    folder = tmp_path / "faulty"
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


def named(shown: dict[str, Any]) -> dict[str, Any]:
    """What the page sends to repair a kind that it shows."""
    return {"report": shown["report"], "kind": shown["kind"]}


def finish(session: Session, name: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The findings after the action has finished; like the page, it names the check that it shows."""
    shown = session.run_action("checkup-status", {}).get("report", 0)
    started = session.run_action(f"checkup-{name}", {"report": shown, **(values or {})})
    session.checkup.task.wait(120)
    found: dict[str, Any] = session.run_action("checkup-status", {"report": started["report"]})["found"]
    return found


def test_findings_are_grouped_by_kind_most_severe_first(tmp_path: Path) -> None:
    session = faulty_session(tmp_path)
    answer = finish(session, "run")
    assert {"broken", "duplicate", "transparent", "no caption"} <= set(kinds(answer))
    levels = [one["level"] for one in answer["kinds"]]
    assert levels == sorted(levels, key=("error", "warning", "hint").index)
    repeated = next(one for one in answer["kinds"] if one["kind"] == "duplicate")["findings"][0]
    assert len(repeated["tokens"]) == 2, "the image and the one it duplicates"
    assert session.image_tokens.load_thumbnail(repeated["tokens"][1])


def test_a_repair_changes_one_kind_keeps_the_originals_and_can_be_undone(tmp_path: Path) -> None:
    session = faulty_session(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "faulty").iterdir()}
    first = kinds(finish(session, "run"))
    after = finish(session, "repair", {"kind": "transparent"})
    assert "transparent" not in kinds(after)
    assert kinds(after)["broken"] == first["broken"]
    assert Image.open(tmp_path / "faulty" / "b.png").mode == "RGB"
    assert (tmp_path / "faulty-originals" / "b.png").read_bytes() == before["b.png"]
    finish(session, "undo")
    assert {path.name: path.read_bytes() for path in (tmp_path / "faulty").iterdir()} == before


def test_actions_that_are_impossible_are_errors(tmp_path: Path) -> None:
    session = faulty_session(tmp_path)
    with pytest.raises(DataError, match="nothing to undo"):
        session.run_action("checkup-undo", {})
    with pytest.raises(DataError, match="Check the images again"):
        session.run_action("checkup-repair", {"kind": "transparent"})
    session.save_draft({**session.demo_form(), "concepts": "[{}]"})
    with pytest.raises(DataError, match="No folder"):
        session.run_action("checkup-run", {})


def test_a_clean_dataset_has_no_findings(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    folder = write_images(tmp_path / "well", 1, size=(600, 600))
    session.save_draft({**session.demo_form(), "concepts": json.dumps([{"folder": str(folder)}])})
    answer = finish(session, "run")
    assert (answer["images"], answer["kinds"]) == (1, [])


def test_tiny_images_are_upscaled_with_lanczos_when_stand_alone_and_can_be_undone(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    image = tmp_path / "set" / "000.png"
    session.save_draft({**session.demo_form(), "resolution": 256})
    before = image.read_bytes()
    tiny = next(one for one in finish(session, "run")["kinds"] if one["kind"] == "tiny")
    assert tiny["upscalers"] == ["Lanczos"], "no other upscaler is available stand-alone"
    answer = finish(session, "upscale", {"upscaler": "Lanczos"})
    with Image.open(image) as larger:
        assert larger.width * larger.height >= 256**2
    assert "tiny" not in kinds(answer) and answer["undo"] == 1 and not answer["failed"]
    finish(session, "undo")
    assert image.read_bytes() == before


def test_upscalers_of_the_webui_are_listed_and_a_failing_one_changes_nothing(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.host.upscaler_names = lambda: ("4x", "Lanczos")
    session.save_draft({**session.demo_form(), "resolution": 256})
    before = (tmp_path / "set" / "000.png").read_bytes()
    tiny = next(one for one in finish(session, "run")["kinds"] if one["kind"] == "tiny")
    assert tiny["upscalers"] == ["4x", "Lanczos"]
    answer = finish(session, "upscale", {"upscaler": "4x"})  # the stand-alone host does not support it
    assert "3 failed" in answer["message"] and answer["failed"] and answer["undo"] == 0
    assert (tmp_path / "set" / "000.png").read_bytes() == before


class Gate:
    """Replaces reading an image: each call waits until it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._turn = threading.Semaphore(0)
        self.seen: list[str] = []
        monkeypatch.setattr(image_cache, "inspect_image", self._look_at)

    def _look_at(self, path: Path) -> image_cache.ImageFacts | str:
        self._turn.acquire(timeout=60)
        self.seen.append(path.name)
        return inspect_image(path)

    def let_through(self, number: int) -> None:
        self._turn.release(number)


def until(session: Session, done: int) -> dict[str, Any]:
    """The status once `done` images are finished."""
    status: dict[str, Any] = {}
    for _ in range(6000):
        status = session.run_action("checkup-status", {})
        if status["done"] >= done:
            break
        threading.Event().wait(0.01)
    return status


def test_a_check_reports_progress_in_the_background_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = open_small_session(tmp_path, images=30)
    session.save_draft(session.demo_form())
    gate = Gate(monkeypatch)
    assert session.run_action("checkup-run", {})["state"] == "busy", "the request returns before the images are checked"
    gate.let_through(12)
    status = until(session, 12)
    assert (status["state"], status["done"], status["total"], status["found"]) == ("busy", 12, 30, None)
    assert status["line"] == "12 of 30 images checked"
    assert session.scan(session.demo_form()).plan, "other requests work in the meantime"
    assert session.run_action("checkup-run", {})["done"] == 12, "a second page sees the same check"
    with pytest.raises(DataError, match="nothing to repair"):
        session.run_action("checkup-repair", {"kind": "tiny"})
    session.run_action("checkup-stop", {})
    gate.let_through(30)
    session.checkup.task.wait(60)
    status = session.run_action("checkup-status", {})
    assert status["state"] == "stopped" and 12 <= status["found"]["images"] < 30
    assert f"Stopped: only {status['done']} of 30 images were checked" in status["found"]["message"]
    again = finish(session, "run")
    assert again["images"] == 30 and len(gate.seen) == 30 == len(set(gate.seen)), "no image is read twice"
    assert again["message"] == ""


def test_a_stopped_repair_leaves_the_other_files_and_can_be_undone(
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
    finish(session, "run")
    found = finish(session, "upscale", {"upscaler": "4x"})
    assert counted == ["0 of 5 images upscaled", "1 of 5 images upscaled"]
    assert "2 files repaired." in found["message"] and "Stopped: 3 not repaired." in found["message"]
    assert kinds(found)["tiny"] == 3 and found["undo"] == 1
    finish(session, "undo")
    assert [image.read_bytes() for image in images] == before


def test_a_missing_folder_is_an_error_and_the_next_check_works(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    session.save_draft({**session.demo_form(), "concepts": json.dumps([{"folder": str(tmp_path / "gone")}])})
    finish(session, "run")
    status = session.run_action("checkup-status", {})
    assert status["state"] == "failed" and "cannot be read" in status["message"]
    session.save_draft(session.demo_form())
    assert finish(session, "run")["images"] == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", b"no image", "none of its images can be read"),
        ("", b"", "contains no images"),
        ("deeper/a.png", b"", "Enter that folder instead"),
    ],
)
def test_a_folder_with_nothing_to_train_on_is_an_error_of_the_check(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    session, _ = open_small_session(tmp_path)
    folder = tmp_path / "bare"
    folder.mkdir()
    if name:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    session.save_draft({**session.demo_form(), "concepts": json.dumps([{"folder": str(folder)}])})
    answer = finish(session, "run")
    (kind,) = [one for one in answer["kinds"] if one["level"] == "error"]
    assert kind["kind"] == "nothing to train on"
    assert message in kind["findings"][0]["message"]


def test_each_page_repairs_and_undoes_the_folders_that_it_checked(tmp_path: Path) -> None:
    session = faulty_session(tmp_path)
    other = write_images(tmp_path / "other", 2)
    before = {path: path.read_bytes() for path in other.iterdir()}
    originals = {path: path.read_bytes() for path in (tmp_path / "faulty").iterdir()}
    first = finish(session, "run")
    session.save_draft({**session.demo_form(), "concepts": json.dumps([{"folder": str(other)}])})
    second = finish(session, "run")  # by another page
    repaired = finish(session, "repair", {"report": first["report"], "kind": "transparent"})
    assert "transparent" not in kinds(repaired) and kinds(repaired)["broken"] == 1
    with pytest.raises(DataError, match="nothing to undo"):
        session.run_action("checkup-undo", {"report": second["report"]})
    finish(session, "undo", {"report": repaired["report"], "record": repaired["record"]})
    assert {path: path.read_bytes() for path in other.iterdir()} == before
    assert {path: path.read_bytes() for path in (tmp_path / "faulty").iterdir()} == originals


def test_a_repair_can_be_undone_after_a_restart(tmp_path: Path) -> None:
    session = faulty_session(tmp_path)
    folder = tmp_path / "faulty"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    finish(session, "run")
    finish(session, "repair", {"kind": "duplicate"})
    restarted = CheckupSession(session.image_tokens, TrainConfig, session.runner.host)
    assert restarted.status({"folders": [str(folder)]})["undo"] == 1
    restarted.undo({"folders": [str(folder)]})
    restarted.task.wait(60)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_user_chooses_which_duplicate_goes(tmp_path: Path) -> None:
    session = faulty_session(tmp_path)
    folder = tmp_path / "faulty"
    (shown,) = (one for one in finish(session, "run")["kinds"] if one["kind"] == "duplicate")
    (finding,) = shown["findings"]
    assert (finding["name"], finding["like"]) == ("c.png", "a.png"), "the copy without a caption goes"
    with pytest.raises(DataError, match="nothing to repair"):
        session.run_action("checkup-repair", {**named(shown), "skip": [finding["number"]]})
    finish(session, "repair", {**named(shown), "swap": [finding["number"]]})
    assert (folder / "c.png").exists() and not (folder / "a.png").exists() and not (folder / "a.txt").exists()


def test_the_user_chooses_how_a_caption_reads(tmp_path: Path) -> None:
    session = faulty_session(tmp_path)
    caption = tmp_path / "faulty" / "a.txt"
    caption.write_bytes("猫".encode("cp932"))
    (shown,) = (one for one in finish(session, "run")["kinds"] if one["kind"] == "caption encoding")
    assert ["cp932", "Japanese (Shift-JIS): 猫"] in shown["findings"][0]["readings"]
    finish(session, "repair", named(shown))
    assert caption.read_bytes() == "猫".encode("cp932"), "without a choice nothing is written"
    finish(session, "repair", {**named(shown), "encodings": {"0": "cp932"}})
    assert caption.read_text(encoding="utf-8") == "猫"


def _open_folder(tmp_path: Path, folder: Path) -> Session:
    """A session whose only concept is the folder."""
    session, _ = open_small_session(tmp_path)
    session.save_draft({**session.demo_form(), "concepts": json.dumps([{"folder": str(folder), "trigger": "zkw"}])})
    return session


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_named_by_a_date_are_renamed_to_one_repeat_and_back(tmp_path: Path) -> None:
    root = tmp_path / "album"
    for name in ("20240131_red hat", "20240201_red_hat", "5_cat"):
        write_images(root / name, 1)
    session, before = _open_folder(tmp_path, root), _tree(root)
    shown = next(one for one in finish(session, "run")["kinds"] if one["kind"] == "date as repeats")
    assert (shown["level"], shown["repair"], shown["count"]) == ("error", "rename", 2)
    after = finish(session, "repair", named(shown))
    assert "date as repeats" not in kinds(after)
    assert {path.name for path in root.iterdir()} == {"1_red_hat", "1_red_hat_", "5_cat"}
    plan = session.scan(session.draft()).plan
    assert plan and {concept.repeats for concept in plan.dataset.concepts} == {1, 5}
    assert {item.caption for item in plan.dataset.items} == {"zkw, image 0"}
    finish(session, "undo")
    assert _tree(root) == before
    assert not (tmp_path / "album-originals").exists()


def test_a_rename_that_cannot_be_undone_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "album"
    write_images(root / "20240131_hat", 1)
    session = _open_folder(tmp_path, root)
    finish(session, "run")
    finish(session, "repair", {"kind": "date as repeats"})
    write_images(root / "20240131_hat", 2)
    before = _tree(root)
    session.run_action("checkup-undo", {})
    session.checkup.task.wait(120)
    assert "exists again" in session.run_action("checkup-status", {})["message"]
    assert _tree(root) == before


@pytest.mark.parametrize("ending", [".gif", ".tif", ".tiff", ".tga"])
def test_images_that_training_does_not_read_are_converted_and_back(tmp_path: Path, ending: str) -> None:
    """Also if a folder has no others: the message names the button."""
    root = tmp_path / "scans"
    root.mkdir()
    Image.new("RGB", (300, 300), (200, 30, 30)).save(root / f"a{ending}")
    (root / "a.txt").write_text("zkw", encoding="utf-8")
    session, before = _open_folder(tmp_path, root), _tree(root)
    with pytest.raises(DataError, match="Check images converts them"):
        session.scan(session.draft())
    shown = next(one for one in finish(session, "run")["kinds"] if one["kind"] == "unsupported format")
    assert shown["repair"] == "convert"
    finish(session, "repair", named(shown))
    assert session.scan(session.draft()).plan is not None
    assert Image.open(root / "a.png").size == (300, 300)
    finish(session, "undo")
    assert _tree(root) == before
