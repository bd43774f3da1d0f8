"""The server's side of Auto-tag: what is offered, what an order would touch, what is written and undone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools.tagger import TaggerResult, ScoredTag, Tagger
from lib_lora_train.web.session import Session
from lib_lora_train.web.tagging import FIELDS, TAGGERS, TaggingSession
from tests.stand_ins.tiny_onnx import write_wd14
from tests.stand_ins.ui import open_small_session, write_images

ORDER: dict[str, Any] = {"tagger": "DeepBooru", "existing": "append", "scope": "all"}


class FakeTaggerHost:
    """DeepBooru sees a hat in every image; `at_image` is called first."""

    def at_image(self) -> None:
        pass

    def has_waiters(self) -> bool:
        return False

    def tagger_names(self) -> tuple[str, ...]:
        return ("DeepBooru", "BLIP")

    @contextmanager
    def tagger(self, name: str) -> Iterator[Tagger]:
        def tagger(image: Image.Image) -> TaggerResult:
            self.at_image()
            return TaggerResult((ScoredTag("big_hat", 0.9), ScoredTag("rain", 0.3)))

        yield tagger


def opened(tmp_path: Path) -> tuple[Session, TaggingSession, FakeTaggerHost, Path]:
    """A session with three images open, of which the second has no caption."""
    session, _ = open_small_session(tmp_path)
    folder = write_images(tmp_path / "images", 3)
    (folder / "001.txt").unlink()
    session.run_action("captions-open", {"folder": str(folder)})
    host = FakeTaggerHost()
    return session, TaggingSession(host, session.captions), host, folder


def done(tagging: TaggingSession, **values: Any) -> dict[str, Any]:
    tagging.start({**ORDER, **values})
    tagging.tagger.wait(60)
    return tagging.status({})


def texts(folder: Path) -> list[str]:
    return [file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("*.txt"))]


def test_every_tagger_and_option_that_is_offered_is_explained(tmp_path: Path) -> None:
    _, tagging, _, _ = opened(tmp_path)
    offered = tagging.offer({})
    assert [one["name"] for one in offered["taggers"]] == ["DeepBooru", "BLIP", "WD14"] == list(TAGGERS)
    assert all(one["help"] for one in offered["taggers"]) and all(field.help for field in FIELDS.values())


def test_stand_alone_says_what_webuis_would_have(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    offered = session.run_action("tagging-options", {})
    assert [one["name"] for one in offered["taggers"]] == ["WD14"]
    assert "DeepBooru and BLIP belong to webuis" in offered["note"]


@pytest.mark.parametrize(
    ("values", "touched", "told"),
    [
        ({"existing": "skip"}, 1, "1 of 3 images would be tagged; 2 have captions and stay."),
        ({"existing": "skip", "scope": "selected", "selected": [1]}, 1, "1 of 1 images would be tagged."),
        ({"existing": "append"}, 3, "3 of 3 images would be tagged; tags are added"),
        ({"existing": "replace", "scope": "filtered", "filter": {"text": "image 2"}}, 1, "are replaced"),
    ],
)
def test_an_order_says_what_it_would_touch(tmp_path: Path, values: dict[str, Any], touched: int, told: str) -> None:
    _, tagging, _, _ = opened(tmp_path)
    answer = tagging.preview({**ORDER, **values})
    assert answer["touched"] == touched and told in answer["told"]


def test_tags_are_added_and_one_undo_takes_them_all_back(tmp_path: Path) -> None:
    session, tagging, _, folder = opened(tmp_path)
    before = texts(folder)
    assert done(tagging, trigger="zkw")["message"] == "3 captions were written."
    assert texts(folder) == ["zkw, image 0, big hat", "zkw, big hat", "zkw, image 2, big hat"]
    assert session.run_action("captions-show", {})["images"][1]["text"] == "zkw, big hat", "the panel has them too"
    session.run_action("captions-undo", {})
    assert texts(folder) == before


def test_only_images_without_a_caption_are_tagged_when_the_others_are_left(tmp_path: Path) -> None:
    _, tagging, _, folder = opened(tmp_path)
    assert done(tagging, existing="skip", general="0.2")["done"] == 1
    assert texts(folder) == ["zkw, image 0", "big hat, rain", "zkw, image 2"]


def test_nothing_above_the_threshold_changes_nothing_and_says_so(tmp_path: Path) -> None:
    _, tagging, _, folder = opened(tmp_path)
    before = texts(folder)
    told = done(tagging, general="0.95", existing="replace")["message"]
    assert told == "0 captions were written; 3 of 3 need no change." and texts(folder) == before


def test_what_is_typed_meanwhile_is_kept(tmp_path: Path) -> None:
    """A caption is written while the tagger looks: it is added to, or left alone, as it is by then."""
    session, tagging, host, folder = opened(tmp_path)
    host.at_image = lambda: session.run_action("captions-save", {"number": 1, "text": "mine"}) and None  # type: ignore
    done(tagging, existing="skip")
    assert texts(folder)[1] == "mine"
    host.at_image = lambda: (folder / "002.txt").write_text("by another program") and None  # type: ignore
    done(tagging)
    assert texts(folder) == ["zkw, image 0, big hat", "mine, big hat", "by another program, big hat"]


def test_another_folder_may_be_opened_meanwhile(tmp_path: Path) -> None:
    session, tagging, host, folder = opened(tmp_path)
    other = write_images(tmp_path / "other", 2)
    host.at_image = lambda: session.run_action("captions-open", {"folder": str(other)}) and None  # type: ignore
    done(tagging)
    assert texts(folder)[1] == "big hat" and texts(other) == ["zkw, image 0", "zkw, image 1"]
    assert session.run_action("captions-show", {})["folder"] == str(other)


@pytest.mark.parametrize("threshold", ["much", "1.5", "-0.1", "nan"])
def test_a_threshold_that_is_no_score_is_told(tmp_path: Path, threshold: str) -> None:
    _, tagging, _, _ = opened(tmp_path)
    with pytest.raises(DataError, match="is no score"):
        tagging.start({**ORDER, "general": threshold})


def test_an_order_before_a_folder_is_opened_is_refused(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    with pytest.raises(DataError, match="Open a folder"):
        session.run_action("tagging-start", ORDER)


def test_a_second_order_and_a_stop(tmp_path: Path) -> None:
    _, tagging, host, _ = opened(tmp_path)
    refused: list[str] = []

    def at_image() -> None:
        with pytest.raises(DataError, match="already") as told:
            tagging.start(ORDER)
        refused.append(str(told.value))
        tagging.stop({})

    host.at_image = at_image  # type: ignore[method-assign]
    assert (done(tagging)["state"], len(refused)) == ("stopped", 1)


def test_wd14_writes_captions_in_the_stand_alone_program(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    session, _, _, folder = opened(tmp_path)
    write_wd14(tmp_path / "tagger", [("long_hair", 0), ("saber_(fate)", 4), ("safe", 9)])
    tagging = TaggingSession(FakeTaggerHost(), session.captions)
    values = {"tagger": "WD14", "model": f"'{tmp_path / 'tagger'}'", "general": "0", "character": "0", "trigger": "zkw"}
    assert done(tagging, **values, existing="skip")["state"] == "done"
    assert texts(folder)[1] == "zkw, saber (fate), long hair"
