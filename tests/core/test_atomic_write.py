"""Files are written completely or not at all, and a failure says what to do."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from lib_lora_train.core.atomic_write import write_text
from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.writable import failed_write_advice


def test_text_is_written_as_utf8_and_no_temporary_file_remains(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "Füchse\n")
    write_text(tmp_path / "a.json", "Hasen\n")
    assert (tmp_path / "a.json").read_bytes() == b"Hasen\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_file_name_may_have_the_longest_length_allowed(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 251}.txt"
    write_text(path, "caption")
    assert path.read_text(encoding="utf-8") == "caption"


def test_a_failed_write_keeps_the_old_file_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a.json", "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib_lora_train.core.atomic_write.os.fsync", full)
    with pytest.raises(OutputError, match=r"a\.json cannot be written: No space left on device\. Free some space"):
        write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_missing_folder_is_created_only_with_make_parents(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "none" / "a.json", "text")
    write_text(tmp_path / "none" / "a.json", "text", make_parents=True)
    assert (tmp_path / "none" / "a.json").read_text(encoding="utf-8") == "text"


def test_concurrent_writers_leave_the_complete_text_of_one(tmp_path: Path) -> None:
    texts = [letter * 200_000 for letter in "ab"]
    threads = [threading.Thread(target=write_text, args=(tmp_path / "a", text)) for text in texts * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text(encoding="utf-8") in texts
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EACCES, "Change the permissions"),
        (errno.EROFS, "Change the permissions"),
        (errno.EEXIST, "Check that the folder exists"),
    ],
)
def test_advice_fits_the_reason_of_a_failed_write(number: int, advice: str) -> None:
    assert failed_write_advice(OSError(number, os.strerror(number))).startswith(advice)
