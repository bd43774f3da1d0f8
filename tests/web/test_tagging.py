"""Auto-tag on the server: options, preview, writing and undo."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools.tagger import ScoredTag, Tagger, TaggerResult
from lib_lora_train.web.session import Session
from lib_lora_train.web.tagging import TaggingSession
from lib_lora_train.web.tagging_options import FIELDS, TAGGERS
from tests.stand_ins.tiny_onnx import write_wd14
from tests.stand_ins.ui import open_small_session, write_images

REQUEST: dict[str, Any] = {"tagger": "DeepBooru", "existing": "append", "scope": "all"}


class FakeTaggerHost:
    """A host whose DeepBooru sees a hat, `tag`, in every image; `during_image` is called before."""

    name = "Forge"
    tag = "big_hat"

    def during_image(self) -> None:
        pass

    def has_waiters(self) -> bool:
        return False

    def tagger_names(self) -> tuple[str, ...]:
        return ("DeepBooru", "BLIP")

    @contextmanager
    def tagger(self, name: str) -> Iterator[Tagger]:
        def tagger(image: Image.Image) -> TaggerResult:
            self.during_image()
            return TaggerResult((ScoredTag(self.tag, 0.9), ScoredTag("rain", 0.3)))

        yield tagger


def opened(tmp_path: Path) -> tuple[Session, TaggingSession, FakeTaggerHost, Path]:
    """A session with three images open, of which the second has no caption."""
    session, _ = open_small_session(tmp_path)
    folder = write_images(tmp_path / "images", 3)
    (folder / "001.txt").unlink()
    session.run_action("captions-open", {"folder": str(folder)})
    host = FakeTaggerHost()
    return session, TaggingSession(host, session.captions), host, folder


def done(tagging: TaggingSession, folder: Path, **values: Any) -> dict[str, Any]:
    tagging.start({**REQUEST, "folder": str(folder), **values})
    tagging.tagger.wait(60)
    return tagging.status({})


def shown_in(session: Session, folder: Path) -> dict[str, Any]:
    return session.run_action("captions-show", {"folder": str(folder)})


def texts(folder: Path) -> list[str]:
    return [file.read_text(encoding="utf-8").strip() for file in sorted(folder.glob("*.txt"))]


def test_every_tagger_and_option_has_a_help_text(tmp_path: Path) -> None:
    _, tagging, _, _ = opened(tmp_path)
    options = tagging.options({})
    assert [one["name"] for one in options["taggers"]] == ["DeepBooru", "BLIP", "WD14"] == list(TAGGERS)
    assert all(one["help"] for one in options["taggers"]) and all(field.help for field in FIELDS.values())


def test_stand_alone_only_wd14_is_available(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    options = session.run_action("tagging-options", {})
    assert [one["name"] for one in options["taggers"]] == ["WD14"]
    assert "DeepBooru and BLIP are not available here (stand-alone)" in options["note"]


@pytest.mark.parametrize(
    ("values", "number", "message"),
    [
        ({"existing": "skip"}, 1, "1 of 3 images would be tagged; 2 already have captions."),
        ({"existing": "skip", "scope": "selected", "selected": ["001.png"]}, 1, "1 of 1 image would be tagged."),
        ({"existing": "append"}, 3, "3 of 3 images would be tagged; tags are appended"),
        ({"existing": "replace", "scope": "filtered", "filter": {"text": "image 2"}}, 1, "are overwritten"),
    ],
)
def test_the_preview_counts_the_images_to_tag(
    tmp_path: Path, values: dict[str, Any], number: int, message: str
) -> None:
    _, tagging, _, folder = opened(tmp_path)
    answer = tagging.preview({**REQUEST, "folder": str(folder), **values})
    assert answer["number"] == number and message in answer["message"]


def test_tags_are_appended_and_one_undo_restores_all_captions(tmp_path: Path) -> None:
    session, tagging, _, folder = opened(tmp_path)
    before = texts(folder)
    assert done(tagging, folder, trigger="zkw")["message"] == "3 captions written."
    assert texts(folder) == ["zkw, image 0, big hat", "zkw, big hat", "zkw, image 2, big hat"]
    assert shown_in(session, folder)["images"][1]["text"] == "zkw, big hat", "the panel shows them too"
    session.run_action("captions-undo", {"folder": str(folder), "record": shown_in(session, folder)["record"]})
    assert texts(folder) == before


def test_a_caption_is_on_the_disk_before_the_next_image_is_tagged(tmp_path: Path) -> None:
    _, tagging, host, folder = opened(tmp_path)
    seen: list[list[str]] = []
    host.during_image = lambda: seen.append(texts(folder))  # type: ignore[method-assign]
    done(tagging, folder)
    first, last = "zkw, image 0, big hat", "zkw, image 2"
    assert seen == [["zkw, image 0", last], [first, last], [first, "big hat", last]]


def test_what_was_written_before_a_crash_is_undone_together(tmp_path: Path) -> None:
    """A copy of the folder, made while the third image is tagged, is what a crash leaves."""
    _, tagging, host, folder = opened(tmp_path)
    before, left = texts(folder), tmp_path / "left"
    written = ["zkw, image 0, big hat", "big hat", before[1]]
    host.during_image = lambda: texts(folder) == written and shutil.copytree(folder, left)  # type: ignore
    done(tagging, folder)
    later, _ = open_small_session(tmp_path / "later")
    assert texts(left) == written
    later.run_action("captions-undo", {"folder": str(left), "record": shown_in(later, left)["record"]})
    assert texts(left) == before


def test_an_edit_in_between_is_undone_separately(tmp_path: Path) -> None:
    session, tagging, host, folder = opened(tmp_path)
    before = texts(folder)

    def save_once() -> None:
        if texts(folder) == ["zkw, image 0, big hat", before[1]]:
            seen = shown_in(session, folder)["images"][0]["seen"]
            typed = {"folder": str(folder), "image": "000.png", "text": "mine", "seen": seen}
            session.run_action("captions-save", typed)

    host.during_image = save_once  # type: ignore[method-assign]
    assert done(tagging, folder)["message"] == "3 captions written."
    for expected in (["mine", before[1]], ["zkw, image 0, big hat", before[1]], before):
        session.run_action("captions-undo", {"folder": str(folder), "record": shown_in(session, folder)["record"]})
        assert texts(folder) == expected


def test_images_that_share_a_caption_are_tagged_once(tmp_path: Path) -> None:
    _, tagging, host, folder = opened(tmp_path)
    with Image.open(folder / "001.png") as image:
        image.convert("RGB").save(folder / "001.jpg")
    names = iter(("a", "first", "second", "z"))
    host.during_image = lambda: setattr(host, "tag", next(names))  # type: ignore[method-assign]
    done(tagging, folder, existing="replace")
    assert texts(folder) == ["a", "first", "z"]


def test_keeping_existing_captions_tags_only_images_without_one(tmp_path: Path) -> None:
    _, tagging, _, folder = opened(tmp_path)
    assert done(tagging, folder, existing="skip", general="0.2")["done"] == 1
    assert texts(folder) == ["zkw, image 0", "big hat, rain", "zkw, image 2"]


def test_nothing_changes_if_no_tag_reaches_the_threshold(tmp_path: Path) -> None:
    _, tagging, _, folder = opened(tmp_path)
    before = texts(folder)
    message = done(tagging, folder, general="0.95", existing="replace")["message"]
    assert message == "0 captions written; 3 of 3 needed no change." and texts(folder) == before


def test_captions_typed_in_the_meantime_are_kept(tmp_path: Path) -> None:
    """Captions are appended to, or kept, as they are on disk when tagging ends."""
    session, tagging, host, folder = opened(tmp_path)
    seen = shown_in(session, folder)["images"][1]["seen"]
    typed = {"folder": str(folder), "image": "001.png", "text": "mine", "seen": seen}
    host.during_image = lambda: session.run_action("captions-save", typed) and None  # type: ignore
    done(tagging, folder, existing="skip")
    assert texts(folder)[1] == "mine"
    host.during_image = lambda: (folder / "002.txt").write_text("by another program") and None  # type: ignore
    done(tagging, folder)
    assert texts(folder) == ["zkw, image 0, big hat", "mine, big hat", "by another program, big hat"]


def test_another_folder_can_be_opened_in_the_meantime(tmp_path: Path) -> None:
    session, tagging, host, folder = opened(tmp_path)
    other = write_images(tmp_path / "other", 2)
    host.during_image = lambda: session.run_action("captions-open", {"folder": str(other)}) and None  # type: ignore
    done(tagging, folder)
    assert texts(folder)[1] == "big hat" and texts(other) == ["zkw, image 0", "zkw, image 1"]


@pytest.mark.parametrize("threshold", ["much", "1.5", "-0.1", "nan"])
def test_an_invalid_threshold_is_an_error(tmp_path: Path, threshold: str) -> None:
    _, tagging, _, folder = opened(tmp_path)
    with pytest.raises(DataError, match="is not a valid score"):
        tagging.start({**REQUEST, "folder": str(folder), "general": threshold})


def test_tagging_requires_an_open_folder(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    with pytest.raises(DataError, match="Open a folder"):
        session.run_action("tagging-start", REQUEST)


def test_a_second_request_is_refused_and_the_first_can_be_stopped(tmp_path: Path) -> None:
    _, tagging, host, folder = opened(tmp_path)
    refused: list[str] = []

    def during_image() -> None:
        with pytest.raises(DataError, match="already") as refusal:
            tagging.start({**REQUEST, "folder": str(folder)})
        refused.append(str(refusal.value))
        tagging.stop({})

    host.during_image = during_image  # type: ignore[method-assign]
    assert (done(tagging, folder)["state"], len(refused)) == ("stopped", 1)


def test_wd14_works_stand_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    session, _, _, folder = opened(tmp_path)
    write_wd14(tmp_path / "tagger", [("long_hair", 0), ("saber_(fate)", 4), ("safe", 9)])
    tagging = TaggingSession(FakeTaggerHost(), session.captions)
    values = {"tagger": "WD14", "model": f"'{tmp_path / 'tagger'}'", "general": "0", "character": "0", "trigger": "zkw"}
    assert done(tagging, folder, **values, existing="skip")["state"] == "done"
    assert texts(folder)[1] == "zkw, saber (fate), long hair"


def test_two_pages_each_tag_only_their_own_folder(tmp_path: Path) -> None:
    session, tagging, _, folder = opened(tmp_path)
    other = write_images(tmp_path / "other", 2)
    before = texts(other)
    session.run_action("captions-open", {"folder": str(other)})
    done(tagging, folder, scope="selected", selected=["001.png", "gone.png"])
    assert texts(folder) == ["zkw, image 0", "big hat", "zkw, image 2"] and texts(other) == before


@pytest.mark.parametrize("existing", ["append", "replace"])
def test_captions_whose_encoding_is_not_certain_are_left_out_and_named(tmp_path: Path, existing: str) -> None:
    _, tagging, _, folder = opened(tmp_path)
    raw = "schön".encode("cp1252")
    (folder / "000.txt").write_bytes(raw)
    request = {**REQUEST, "folder": str(folder), "existing": existing}
    note = "1 caption is not UTF-8 and was left out: 000.txt."
    assert note in tagging.preview(request)["message"]
    assert done(tagging, folder, existing=existing)["message"] == "2 captions written."
    assert (folder / "000.txt").read_bytes() == raw
    with pytest.raises(DataError, match=note):
        tagging.start({**request, "scope": "selected", "selected": ["000.png"]})


def test_a_caption_that_loses_its_encoding_meanwhile_is_left_out_too(tmp_path: Path) -> None:
    _, tagging, host, folder = opened(tmp_path)
    raw = "schön".encode("cp1252")

    def change_encoding() -> None:
        (folder / "000.txt").write_bytes(raw)

    host.during_image = change_encoding  # type: ignore[method-assign]
    message = done(tagging, folder)["message"]
    assert message.startswith("2 captions written. 1 caption is not UTF-8 and was left out: 000.txt.")
    assert (folder / "000.txt").read_bytes() == raw


@pytest.mark.parametrize(("lines", "text"), [("joined", "a, b, big hat"), ("random", "a, big hat\nb, big hat")])
def test_tags_are_appended_to_what_training_reads_as_one_caption(tmp_path: Path, lines: str, text: str) -> None:
    session, tagging, _, folder = opened(tmp_path)
    session.save_draft({**session.demo_form(), "caption_lines": lines})
    (folder / "000.txt").write_text("a\nb", encoding="utf-8")
    done(tagging, folder)
    assert texts(folder)[0] == text
