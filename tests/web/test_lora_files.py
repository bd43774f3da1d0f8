"""The LoRA picker lists the files in all folders of the host, and tells files of one name apart."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.web.form import fill_form
from lib_lora_train.web.lora_files import LoraPicker


def picker(tmp_path: Path, staged: list[Any], **read: Path) -> LoraPicker:
    """Of a host with two folders, which reads these files by name."""
    host: Any = SimpleNamespace(lora_dirs=(tmp_path / "a", tmp_path / "b"), lora_file=read.get)
    return LoraPicker(host, staged.append)


def write(path: Path, when: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"0" * 1_500_000)
    os.utime(path, (when, when))
    return path


def test_files_of_every_folder_are_listed_newest_first(tmp_path: Path) -> None:
    old, new = write(tmp_path / "a" / "old.safetensors", 10), write(tmp_path / "b" / "style" / "new.safetensors", 20)
    beside = write(tmp_path / "elsewhere" / "beside.safetensors", 5)
    (tmp_path / "a" / "folder.safetensors").mkdir()
    found = picker(tmp_path, []).list_files({"file": str(tmp_path / "elsewhere" / "x.safetensors")})
    assert [file["path"] for file in found["files"]] == [str(new), str(old), str(beside)]
    assert found["files"][0]["description"] == f"{new.parent}, 1.5 MB" and found["left_out"] == 0


def test_of_two_files_with_one_name_the_one_that_prompts_do_not_read_is_marked(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a" / "zok.safetensors", 10), write(tmp_path / "b" / "zok.safetensors", 20)
    found = picker(tmp_path, [], zok=second).list_files({})
    marked = {file["path"]: "prompts read the other" in file["description"] for file in found["files"]}
    assert marked == {str(second): False, str(first): True}


def test_a_chosen_file_is_continued_from(tmp_path: Path) -> None:
    staged: list[Any] = []
    picker(tmp_path, staged).use({"file": str(tmp_path / "a" / "zok.safetensors")})
    form, message = staged[0](fill_form(TrainConfig()))
    assert form["continue_from"] == str(tmp_path / "a" / "zok.safetensors") and "zok" in message
