"""The crop editor's side of the server."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import DataError
from lib_lora_train.web.form import CONCEPTS, concepts_text
from lib_lora_train.web.session import Desk
from tests.stand_ins.ui import open_small_desk


def looked_desk(tmp_path: Path) -> tuple[Desk, str]:
    """A desk that has looked at its folder, and the first picture's token."""
    desk, _ = open_small_desk(tmp_path)
    Image.new("RGB", (300, 70), (9, 90, 200)).save(tmp_path / "set" / "000.png")
    form = desk.demo_form()
    desk.keep(form)
    desk.look(form)
    return desk, desk.pictures(0)["pictures"][0]["token"]


def test_a_picture_is_shown_with_its_bucket_and_what_is_lost(tmp_path: Path) -> None:
    desk, token = looked_desk(tmp_path)
    answer = desk.ask("crop-look", {"token": token})
    assert (answer["width"], answer["height"]) == (300, 70)
    left, top, width, height = answer["frame"]
    assert left > 0 and top == 0 and left + width <= 300 and height == 70
    assert answer["lost"] == pytest.approx(1 - width * height / (300 * 70))
    assert answer["buckets"][0] == [64, 64], "64 px allow one bucket only"


def test_a_crop_is_written_and_undone(tmp_path: Path) -> None:
    desk, token = looked_desk(tmp_path)
    picture = tmp_path / "set" / "000.png"
    before = picture.read_bytes()
    answer = desk.ask("crop-write", {"token": token, "frame": [200, 0, 70, 70]})
    with Image.open(picture) as cut:
        assert cut.size == (70, 70)
    assert "70 × 70" in answer["told"] and "set-originals" in answer["told"]
    desk.look(desk.demo_form())
    assert desk.ask("crop-look", {"token": token})["undo"] == 1
    desk.ask("crop-undo", {})
    assert picture.read_bytes() == before
    with pytest.raises(DataError, match="no crop"):
        desk.ask("crop-undo", {})


def test_pictures_of_another_data_set_are_refused(tmp_path: Path) -> None:
    desk, _ = looked_desk(tmp_path)
    Image.new("RGB", (90, 90)).save(tmp_path / "other.png")
    (foreign,) = desk.shelf.publish([tmp_path / "other.png"])
    for token in (foreign, "nonsense", ""):
        with pytest.raises(DataError, match="not in the data set"):
            desk.ask("crop-write", {"token": token, "frame": [0, 0, 70, 70]})


def test_a_frame_that_is_none_is_refused(tmp_path: Path) -> None:
    desk, token = looked_desk(tmp_path)
    for frame in (None, [1, 2], ["a", 0, 64, 64], [0, 0, 900, 900], [0, 0, float("inf"), 64]):
        with pytest.raises(DataError):
            desk.ask("crop-write", {"token": token, "frame": frame})


def test_originals_lie_beside_the_folder_that_was_looked_at_whatever_the_form_says_by_now(tmp_path: Path) -> None:
    """Beside a `2_zok` they would lie inside the data set, and be trained on as another kohya folder."""
    desk, _ = open_small_desk(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "set").rename(tmp_path / "data" / "2_zok")
    form = {**desk.demo_form(), CONCEPTS: concepts_text([Concept(str(tmp_path / "data"))])}
    desk.keep(form)
    desk.look(form)
    desk.keep({**form, CONCEPTS: concepts_text([])})
    token = desk.pictures(0)["pictures"][0]["token"]
    left, top, width, height = desk.ask("crop-look", {"token": token})["frame"]
    desk.ask("crop-write", {"token": token, "frame": [left, top, width, height]})
    assert (tmp_path / "data-originals" / "2_zok").is_dir()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["2_zok"]
