"""What is offered while a tag is typed: the folder's own tags first, then the user's list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools.tag_vocabulary import TagList, load_tag_list
from lib_lora_train.web import tag_completion as completing
from lib_lora_train.web.session import Session
from tests.stand_ins.ui import open_small_session, write_images

LINES = 'long_hair,0,4000000,"longhair"\nlong_cat_(meme),4,300,\n^_^,0,100,\n1girl,0,5,"sole_female"\n'


def opened(tmp_path: Path) -> tuple[Session, str]:
    session, _ = open_small_session(tmp_path)
    folder = write_images(tmp_path / "images", 3)
    (folder / "000.txt").write_text("zkw, long coat, Long Hair", encoding="utf-8")
    (folder / "001.txt").write_text("zkw, long coat", encoding="utf-8")
    session.ask("captions-open", {"folder": str(folder)})
    (tmp_path / "tags.csv").write_text(LINES, encoding="utf-8")
    return session, str(tmp_path / "tags.csv")


def offered(session: Session, typed: str, file: str = "") -> list[str]:
    return [one["tag"] for one in session.ask("completing", {"typed": typed, "list": file})["found"]]


def test_the_folders_own_tags_come_first_and_are_not_repeated(tmp_path: Path) -> None:
    session, file = opened(tmp_path)
    assert offered(session, "long") == ["long coat", "Long Hair"]
    assert offered(session, "long", file) == ["long coat", "Long Hair", "long cat (meme)"]
    assert offered(session, "long coat", file) == [], "what is complete needs no completion"


@pytest.mark.parametrize(
    ("typed", "tags"), [("long c", ["long coat", "long cat (meme)"]), ("long_ca", ["long_cat_(meme)"]), ("^_", ["^_^"])]
)
def test_tags_of_the_list_are_written_as_one_types(tmp_path: Path, typed: str, tags: list[str]) -> None:
    session, file = opened(tmp_path)
    assert offered(session, typed, file) == tags


def test_an_alias_is_named_beside_its_tag(tmp_path: Path) -> None:
    session, file = opened(tmp_path)
    (found,) = session.ask("completing", {"typed": "sole", "list": f'"{file}"'})["found"]
    assert found == {"tag": "1girl", "count": 5, "alias": "sole_female", "own": False}


def test_an_edit_is_known_at_once(tmp_path: Path) -> None:
    session, _ = opened(tmp_path)
    assert offered(session, "forest") == []
    session.ask("captions-save", {"number": 2, "text": "zkw, forest path"})
    assert offered(session, "forest") == ["forest path"]


def test_the_list_works_before_a_folder_is_opened(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    (tmp_path / "tags.csv").write_text(LINES, encoding="utf-8")
    assert offered(session, "long", str(tmp_path / "tags.csv")) == ["long hair", "long cat (meme)"]


def test_the_list_is_read_once_until_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def load(path: Path) -> TagList:
        read.append(path)
        return load_tag_list(path)

    monkeypatch.setattr(completing, "load_tag_list", load)
    session, file = opened(tmp_path)
    assert session.ask("completing-list", {"list": file})["told"] == "4 tags, 2 aliases"
    offered(session, "lo", file)
    offered(session, "on", file)
    assert len(read) == 1
    Path(file).write_text("cat,0,1,\n", encoding="utf-8")
    os.utime(file, (1, 1))
    assert offered(session, "ca", file) == ["cat"] and len(read) == 2


def test_a_list_that_cannot_be_read_is_told_once_and_typing_goes_on(tmp_path: Path) -> None:
    session, _ = opened(tmp_path)
    with pytest.raises(DataError, match="cannot be read as a list of tags"):
        session.ask("completing-list", {"list": str(tmp_path / "none.csv")})
    assert offered(session, "long", str(tmp_path / "none.csv")) == ["long coat", "Long Hair"]
    assert session.ask("completing-list", {"list": " "}) == {"told": ""}
