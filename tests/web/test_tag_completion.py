"""Tag completion: tags of the folder first, then those of the list of the user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools.tag_vocabulary import TagList, load_tag_list
from lib_lora_train.web import tag_completion
from lib_lora_train.web.session import Session
from tests.stand_ins.ui import open_small_session, write_images

LINES = 'long_hair,0,4000000,"longhair"\nlong_cat_(meme),4,300,\n^_^,0,100,\n1girl,0,5,"sole_female"\n'


def opened(tmp_path: Path) -> tuple[Session, str]:
    session, _ = open_small_session(tmp_path)
    folder = write_images(tmp_path / "images", 3)
    (folder / "000.txt").write_text("zkw, long coat, Long Hair", encoding="utf-8")
    (folder / "001.txt").write_text("zkw, long coat", encoding="utf-8")
    session.run_action("captions-open", {"folder": str(folder)})
    (tmp_path / "tags.csv").write_text(LINES, encoding="utf-8")
    return session, str(tmp_path / "tags.csv")


def suggested(session: Session, tmp_path: Path, typed: str, file: str = "") -> list[str]:
    values = {"typed": typed, "list": file, "folder": str(tmp_path / "images")}
    return [one["tag"] for one in session.run_action("complete-tag", values)["found"]]


def test_tags_of_the_folder_come_first_and_are_not_repeated(tmp_path: Path) -> None:
    session, file = opened(tmp_path)
    assert suggested(session, tmp_path, "long") == ["long coat", "Long Hair"]
    assert suggested(session, tmp_path, "long", file) == ["long coat", "Long Hair", "long cat (meme)"]
    assert suggested(session, tmp_path, "long coat", file) == [], "a complete tag has no suggestions"


@pytest.mark.parametrize(
    ("typed", "tags"), [("long c", ["long coat", "long cat (meme)"]), ("long_ca", ["long_cat_(meme)"]), ("^_", ["^_^"])]
)
def test_tags_of_the_list_follow_the_typed_underscores(tmp_path: Path, typed: str, tags: list[str]) -> None:
    session, file = opened(tmp_path)
    assert suggested(session, tmp_path, typed, file) == tags


def test_an_alias_is_named_beside_its_tag(tmp_path: Path) -> None:
    session, file = opened(tmp_path)
    (found,) = session.run_action("complete-tag", {"typed": "sole", "list": f'"{file}"'})["found"]
    assert found == {"tag": "1girl", "count": 5, "alias": "sole_female", "own": False}


def test_an_edited_caption_is_suggested_at_once(tmp_path: Path) -> None:
    session, _ = opened(tmp_path)
    assert suggested(session, tmp_path, "forest") == []
    image = {"folder": str(tmp_path / "images"), "image": "002.png"}
    seen = session.run_action("captions-read", image)["seen"]
    session.run_action("captions-save", {**image, "text": "zkw, forest path", "seen": seen})
    assert suggested(session, tmp_path, "forest") == ["forest path"]


def test_the_list_works_without_an_open_folder(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    (tmp_path / "tags.csv").write_text(LINES, encoding="utf-8")
    assert suggested(session, tmp_path, "long", str(tmp_path / "tags.csv")) == ["long hair", "long cat (meme)"]


def test_the_list_is_read_once_until_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def load(path: Path) -> TagList:
        read.append(path)
        return load_tag_list(path)

    monkeypatch.setattr(tag_completion, "load_tag_list", load)
    session, file = opened(tmp_path)
    assert session.run_action("tag-list", {"list": file})["message"] == "4 tags, 2 aliases"
    suggested(session, tmp_path, "lo", file)
    suggested(session, tmp_path, "on", file)
    assert len(read) == 1
    Path(file).write_text("cat,0,1,\n", encoding="utf-8")
    os.utime(file, (1, 1))
    assert suggested(session, tmp_path, "ca", file) == ["cat"] and len(read) == 2


def test_an_unreadable_list_is_reported_once_and_completion_continues(tmp_path: Path) -> None:
    session, _ = opened(tmp_path)
    with pytest.raises(DataError, match="cannot be read as a tag list"):
        session.run_action("tag-list", {"list": str(tmp_path / "none.csv")})
    assert suggested(session, tmp_path, "long", str(tmp_path / "none.csv")) == ["long coat", "Long Hair"]
    assert session.run_action("tag-list", {"list": " "}) == {"message": ""}


def test_two_pages_get_the_tags_of_their_own_folder(tmp_path: Path) -> None:
    session, _ = opened(tmp_path)
    other = write_images(tmp_path / "other", 1)
    (other / "000.txt").write_text("long road", encoding="utf-8")
    session.run_action("captions-open", {"folder": str(other)})
    assert suggested(session, tmp_path, "long") == ["long coat", "Long Hair"]
    assert session.run_action("complete-tag", {"typed": "long"}) == {"found": []}, "no folder is open"
