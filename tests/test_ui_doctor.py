"""The doctor in the Dataset panel: findings by kind, remedies that keep the originals, undo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.errors import DataError
from lib_lora_train.ui.desk import Desk
from ui_stand_ins import open_small_desk, write_pictures


def sick_desk(tmp_path: Path) -> Desk:
    """A desk whose folder holds a transparent picture, one without caption, a repeated one and a broken one."""
    desk, _ = open_small_desk(tmp_path)
    folder = tmp_path / "sick"
    folder.mkdir()
    for name, colour in (("a", (200, 30, 30, 255)), ("b", (30, 200, 30, 90))):
        picture = Image.radial_gradient("L").resize((300, 300))
        Image.merge("RGBA", [picture.point(lambda v, c=c: v * c // 255) for c in colour]).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("zkw", encoding="utf-8")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes())
    (folder / "d.png").write_bytes(b"no picture")
    desk.keep({**desk.demo_form(), "concepts": json.dumps([{"folder": str(folder), "trigger": "zkw"}])})
    return desk


def kinds(answer: dict[str, Any]) -> dict[str, int]:
    return {one["kind"]: one["count"] for one in answer["kinds"]}


def test_findings_come_by_kind_the_gravest_first_with_their_pictures(tmp_path: Path) -> None:
    desk = sick_desk(tmp_path)
    answer = desk.ask("doctor-examine", {})
    assert {"broken", "duplicate", "transparent", "no caption"} <= set(kinds(answer))
    levels = [one["level"] for one in answer["kinds"]]
    assert levels == sorted(levels, key=("error", "warning", "hint").index)
    repeated = next(one for one in answer["kinds"] if one["kind"] == "duplicate")["findings"][0]
    assert len(repeated["tokens"]) == 2, "the picture and the one it repeats"
    assert desk.shelf.load_thumbnail(repeated["tokens"][1])


def test_a_remedy_treats_its_kind_only_keeps_the_originals_and_is_undone(tmp_path: Path) -> None:
    desk = sick_desk(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "sick").iterdir()}
    first = kinds(desk.ask("doctor-examine", {}))
    after = desk.ask("doctor-treat", {"kind": "transparent"})
    assert "transparent" not in kinds(after)
    assert kinds(after)["broken"] == first["broken"]
    assert Image.open(tmp_path / "sick" / "b.png").mode == "RGB"
    assert (tmp_path / "sick-originals" / "b.png").read_bytes() == before["b.png"]
    desk.ask("doctor-undo", {})
    assert {path.name: path.read_bytes() for path in (tmp_path / "sick").iterdir()} == before


def test_what_cannot_be_done_is_told(tmp_path: Path) -> None:
    desk = sick_desk(tmp_path)
    with pytest.raises(DataError, match="nothing to undo"):
        desk.ask("doctor-undo", {})
    with pytest.raises(DataError, match="Examine the folders again"):
        desk.ask("doctor-treat", {"kind": "transparent"})
    desk.keep({**desk.demo_form(), "concepts": "[{}]"})
    with pytest.raises(DataError, match="No folder"):
        desk.ask("doctor-examine", {})


def test_a_healthy_set_has_no_findings(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path)
    folder = write_pictures(tmp_path / "well", 1, size=(600, 600))
    desk.keep({**desk.demo_form(), "concepts": json.dumps([{"folder": str(folder)}])})
    answer = desk.ask("doctor-examine", {})
    assert (answer["pictures"], answer["kinds"]) == (1, [])


def test_tiny_pictures_are_upscaled_by_what_there_is_and_undone(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path)
    picture = tmp_path / "set" / "000.png"
    desk.keep({**desk.demo_form(), "resolution": 256})
    before = picture.read_bytes()
    tiny = next(one for one in desk.ask("doctor-examine", {})["kinds"] if one["kind"] == "tiny")
    assert tiny["upscalers"] == ["Lanczos"], "stand-alone there is nothing else"
    answer = desk.ask("doctor-upscale", {"upscaler": "Lanczos"})
    with Image.open(picture) as larger:
        assert larger.width * larger.height >= 256**2
    assert "tiny" not in kinds(answer) and answer["undo"] == 1 and not answer["failed"]
    desk.ask("doctor-undo", {})
    assert picture.read_bytes() == before


def test_the_webuis_upscalers_are_offered_and_a_failing_one_changes_nothing(tmp_path: Path) -> None:
    desk, runner = open_small_desk(tmp_path)
    runner.host.upscaler_names = lambda: ("4x", "Lanczos")
    desk.keep({**desk.demo_form(), "resolution": 256})
    before = (tmp_path / "set" / "000.png").read_bytes()
    tiny = next(one for one in desk.ask("doctor-examine", {})["kinds"] if one["kind"] == "tiny")
    assert tiny["upscalers"] == ["4x", "Lanczos"]
    answer = desk.ask("doctor-upscale", {"upscaler": "4x"})  # the stand-alone host refuses it
    assert "could not be" in answer["told"] and answer["failed"] and answer["undo"] == 0
    assert (tmp_path / "set" / "000.png").read_bytes() == before
