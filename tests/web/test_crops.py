"""The crop editor on the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError, LoraTrainError
from lib_lora_train.web.crops import CropSession
from lib_lora_train.web.form import CONCEPTS, concepts_text
from lib_lora_train.web.session import Session
from tests.stand_ins.ui import open_small_session, write_images


def scanned_session(tmp_path: Path) -> tuple[Session, str]:
    """A session with a scanned folder, and the token of its first image."""
    session, _ = open_small_session(tmp_path)
    Image.new("RGB", (300, 70), (9, 90, 200)).save(tmp_path / "set" / "000.png")
    form = session.demo_form()
    session.save_draft(form)
    session.scan(form)
    return session, session.images(0)["images"][0]["token"]


def open_crop(session: Session, token: str) -> dict[str, Any]:
    """What the page knows of the image: it sends this with each request."""
    shown = session.run_action("crop-open", {"token": token})
    return {name: shown[name] for name in ("token", "folder", "seen", "record", "undo", "frame")}


def test_the_editor_gets_the_bucket_and_the_share_that_is_cut_off(tmp_path: Path) -> None:
    session, token = scanned_session(tmp_path)
    answer = session.run_action("crop-open", {"token": token})
    assert (answer["width"], answer["height"]) == (300, 70)
    left, top, width, height = answer["frame"]
    assert left > 0 and top == 0 and left + width <= 300 and height == 70
    assert answer["lost"] == pytest.approx(1 - width * height / (300 * 70))
    assert answer["buckets"][0] == [64, 64], "64 px allow only one bucket"


def test_a_crop_is_written_and_can_be_undone(tmp_path: Path) -> None:
    session, token = scanned_session(tmp_path)
    image = tmp_path / "set" / "000.png"
    before = image.read_bytes()
    shown = open_crop(session, token)
    answer = session.run_action("crop-write", {**shown, "frame": [200, 0, 70, 70]})
    with Image.open(image) as cut:
        assert cut.size == (70, 70)
    assert "70 × 70" in answer["message"] and "set-originals" in answer["message"]
    session.scan(session.demo_form())
    shown = open_crop(session, token)
    assert shown["undo"] == 1
    session.run_action("crop-undo", shown)
    assert image.read_bytes() == before
    with pytest.raises(DataError, match="no crop"):
        session.run_action("crop-undo", shown)


def test_a_crop_can_be_undone_after_a_restart(tmp_path: Path) -> None:
    session, token = scanned_session(tmp_path)
    image = tmp_path / "set" / "000.png"
    before = image.read_bytes()
    session.run_action("crop-write", {**open_crop(session, token), "frame": [200, 0, 70, 70]})
    restarted = CropSession(session.image_tokens, lambda: None, TrainConfig)
    restarted.undo({"folder": str(tmp_path / "set")})
    assert image.read_bytes() == before


def test_a_crop_goes_into_the_image_and_folder_that_the_page_showed(tmp_path: Path) -> None:
    session, token = scanned_session(tmp_path)
    shown = open_crop(session, token)
    write_images(tmp_path / "other", 2)
    form = {**session.demo_form(), CONCEPTS: concepts_text([Concept(str(tmp_path / "other"))])}
    session.scan(form)  # in another tab
    before = {path: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    session.run_action("crop-write", {**shown, "frame": [200, 0, 70, 70]})
    with Image.open(tmp_path / "set" / "000.png") as cut:
        assert cut.size == (70, 70)
    assert {path: path.read_bytes() for path in (tmp_path / "other").iterdir()} == before
    with pytest.raises(DataError, match="has changed since it was shown"):
        session.run_action("crop-write", {**shown, "frame": [0, 0, 64, 64]})
    with pytest.raises(DataError, match="in the meantime"):
        session.run_action("crop-undo", shown)  # this page has not seen the crop


def test_images_of_another_dataset_are_refused(tmp_path: Path) -> None:
    session, _ = scanned_session(tmp_path)
    Image.new("RGB", (90, 90)).save(tmp_path / "other.png")
    (foreign,) = session.image_tokens.publish([tmp_path / "other.png"])
    for token in (foreign, "nonsense", ""):
        with pytest.raises(DataError, match="no longer in the dataset"):
            session.run_action("crop-write", {"token": token, "frame": [0, 0, 70, 70]})


def test_an_invalid_frame_is_refused(tmp_path: Path) -> None:
    session, token = scanned_session(tmp_path)
    for frame in (None, [1, 2], ["a", 0, 64, 64], [0, 0, 900, 900], [0, 0, float("inf"), 64]):
        with pytest.raises(LoraTrainError):
            session.run_action("crop-write", {**open_crop(session, token), "frame": frame})


def test_originals_are_kept_beside_the_scanned_folder_even_if_the_form_has_changed(tmp_path: Path) -> None:
    """Beside `2_zok` they would be inside the dataset and be trained on as another kohya folder."""
    session, _ = open_small_session(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "set").rename(tmp_path / "data" / "2_zok")
    form = {**session.demo_form(), CONCEPTS: concepts_text([Concept(str(tmp_path / "data"))])}
    session.save_draft(form)
    session.scan(form)
    session.save_draft({**form, CONCEPTS: concepts_text([])})
    token = session.images(0)["images"][0]["token"]
    shown = open_crop(session, token)
    session.run_action("crop-write", {**shown, "frame": shown["frame"]})
    assert (tmp_path / "data-originals" / "2_zok").is_dir()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["2_zok"]
