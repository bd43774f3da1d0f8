"""Every edit of the user's files can be undone, whenever the program or an undo was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import DataError, OutputError
from lib_lora_train.dataset_tools import journal
from lib_lora_train.dataset_tools.caption_edits import add_tags
from lib_lora_train.dataset_tools.caption_files import BACKUPS, list_backups, load_captions, plan_edit, write_plan
from lib_lora_train.dataset_tools.journal import FileEdit, Journal, undo
from lib_lora_train.dataset_tools.journal_records import content_hash, list_records, load_record


class Crash(BaseException):
    """Nothing handles it, as nothing handles a power cut."""


def crash_at(patch: pytest.MonkeyPatch, number: int, error: Callable[[], BaseException] = Crash) -> None:
    """Every change of a file counts; the one with this number, from 0, does not happen any more."""
    done = [0]
    for name in ("_write", "_copy", "_move"):
        plain = getattr(journal, name)

        def counted(*arguments: object, plain: Callable[..., None] = plain) -> None:
            done[0] += 1
            if done[0] > number:
                raise error()
            plain(*arguments)

        patch.setattr(journal, name, counted)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files to replace, to set aside and to convert."""
    made = tmp_path / "cats"
    (made / "10_x").mkdir(parents=True)
    for name in ("replaced.png", "10_x/aside.png", "converted.gif", "caption.txt"):
        (made / name).write_bytes(f"old {name}".encode())
    return made


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def edits(folder: Path) -> list[FileEdit]:
    kept = folder.with_name("cats-originals")
    return [
        FileEdit(folder / "replaced.png", b"new", kept / "replaced.png"),
        FileEdit(folder / "10_x" / "aside.png", None, kept / "10_x" / "aside.png"),
        FileEdit(folder / "converted.png", b"new"),
        FileEdit(folder / "converted.gif", None, kept / "converted.gif"),
        FileEdit(folder / "caption.txt", b"new caption"),
    ]


def new_journal(folder: Path) -> Journal:
    return Journal(folder.with_name("cats-originals"), folder, "repair")


@pytest.mark.parametrize("point", range(7))
def test_after_a_crash_at_any_point_undo_restores_everything(
    folder: Path, point: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, made = snapshot(folder), new_journal(folder)
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        try:
            made.apply(edits(folder))
        except Crash:
            assert set(snapshot(folder)) | set(snapshot(folder.with_name("cats-originals"))) >= set(before)
    (record,) = list_records(folder.with_name("cats-originals"))
    assert not load_record(record).is_complete
    undo(record)
    assert snapshot(folder) == before and not folder.with_name("cats-originals").exists()


@pytest.mark.parametrize("error", [Crash, lambda: PermissionError(13, "in use by another program")])
@pytest.mark.parametrize("point", range(6))
def test_an_undo_interrupted_at_any_point_can_be_repeated(
    folder: Path, point: int, error: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, made = snapshot(folder), new_journal(folder)
    made.apply(edits(folder))
    record = made.commit()
    assert record and load_record(record).is_complete
    with monkeypatch.context() as patch:
        crash_at(patch, point, error)
        try:
            undo(record, "set aside")
        except (Crash, OutputError):
            undo_again = True
        else:
            undo_again = False
    if undo_again:
        undo(record, "set aside")
    assert snapshot(folder) == before and not record.exists()


@pytest.mark.parametrize("point", range(6))
def test_if_one_file_cannot_be_written_none_is_changed(
    folder: Path, point: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, made = snapshot(folder), new_journal(folder)
    write = atomic_write.write_bytes
    calls: list[Path] = []

    def failing(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == point % 3 + 1:
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(atomic_write, "write_bytes", failing)
    with pytest.raises(OutputError, match="No space left on device"):
        made.apply(edits(folder))
    assert snapshot(folder) == before and made.written is None


def test_steps_of_one_edit_are_undone_together_and_a_torn_line_spoils_nothing(folder: Path) -> None:
    before, made = snapshot(folder), new_journal(folder)
    for edit in edits(folder):
        made.apply([edit])
    with made.path.open("ab") as file:
        file.write(b'\n{"file": "replaced.png", "tex')  # the program was killed while it wrote this
    made.apply([FileEdit(folder / "caption.txt", b"newer")])
    assert undo(made.path).restored == 6
    assert snapshot(folder) == before


def test_a_moved_folder_can_be_undone_there(folder: Path, tmp_path: Path) -> None:
    before, made = snapshot(folder), new_journal(folder)
    made.apply(edits(folder))
    made.commit()
    (tmp_path / "elsewhere").mkdir()
    for name in ("cats", "cats-originals"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    (record,) = list_records(tmp_path / "elsewhere" / "cats-originals")
    undo(record)
    assert snapshot(tmp_path / "elsewhere" / "cats") == before


def test_files_changed_after_the_edit_are_refused_left_or_set_aside(folder: Path) -> None:
    made = new_journal(folder)
    made.apply(edits(folder))
    (folder / "replaced.png").write_bytes(b"by the user")
    after = snapshot(folder)
    with pytest.raises(DataError, match=r"replaced\.png has changed since this edit"):
        undo(made.path)
    assert snapshot(folder) == after
    result = undo(made.path, "leave")
    assert [path.name for path in result.left] == ["replaced.png"]
    assert (folder / "replaced.png").read_bytes() == b"by the user"
    assert (folder / "caption.txt").read_bytes() == b"old caption.txt"


def test_a_record_names_only_files_in_its_folder(folder: Path, tmp_path: Path) -> None:
    """Records may have come with a downloaded dataset."""
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    place = folder / BACKUPS
    place.mkdir()
    row = {"file": "../outside.txt", "before": "theirs", "after": "mine"}
    (place / "20260101-000000-000000001-aaaaaa.json").write_text(json.dumps([row]))
    with pytest.raises(DataError, match="cannot be read"):
        undo(list_backups(folder)[0])
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("torn", [b"", b'[{"file":"1.txt","bef', b"[{", b"\x00" * 40])
@pytest.mark.parametrize("name", ["20260101-000001-000000001-b.json", "20260101-000001-000000001-captions.undo.jsonl"])
def test_a_torn_record_does_not_block_earlier_ones(tmp_path: Path, torn: bytes, name: str) -> None:
    (tmp_path / "1.png").touch()
    (tmp_path / "1.txt").write_text("first edit, zorp\n")
    place = tmp_path / BACKUPS
    place.mkdir()
    row = {"file": "1.txt", "before": "zorp\n", "after": "first edit, zorp\n"}
    (place / "20260101-000000-000000001-aaaaaa.json").write_text(json.dumps([row]))
    (place / name).write_bytes(torn)
    (record,) = list_backups(tmp_path)
    assert undo(record).restored == 1
    assert (tmp_path / "1.txt").read_text() == "zorp\n"


@pytest.mark.parametrize("place", [".caption-backups", ".caption-list_backups"])
def test_caption_backups_of_earlier_versions_can_be_undone(tmp_path: Path, place: str) -> None:
    (tmp_path / "1.txt").write_text("new\n")
    (tmp_path / "2.txt").write_text("schön, new\n", encoding="utf-8")
    (tmp_path / "3.txt").write_text("added\n")
    (tmp_path / place).mkdir()
    rows = [
        {"file": "1.txt", "before": "old", "after": "new\n"},
        {"file": "2.txt", "before_base64": "c2No9m4=", "after": "schön, new\n"},
        {"file": "3.txt", "before": None, "after": "added\n"},
    ]
    backup = tmp_path / place / "20260101-000000-000000001-aaaaaa.json"
    backup.write_text(json.dumps(rows), encoding="utf-8")
    assert list_backups(tmp_path) == [backup]
    undo(backup)
    assert snapshot(tmp_path) == {"1.txt": b"old", "2.txt": "schön".encode("latin-1")}


@pytest.mark.parametrize("is_half_undone", [False, True])
def test_lists_of_originals_of_earlier_versions_can_be_undone(folder: Path, is_half_undone: bool) -> None:
    """Also those whose undo stopped halfway, which the version that wrote them could not finish."""
    before, kept = snapshot(folder), folder.with_name("cats-originals")
    kept.mkdir()
    rows = []
    for name, written in (
        ("replaced.png", "replaced.png"),
        ("10_x/aside.png", None),
        ("converted.gif", "converted.png"),
    ):
        (folder / name).rename(kept / Path(name).name)
        row = {"original": str(folder / name), "kept": str(kept / Path(name).name), "written": None}
        if written:
            (folder / written).write_bytes(b"new")
            row |= {"written": str(folder / written), "content_hash": content_hash(b"new")}
        rows.append(row)
    record = kept / "undo-1790000000000000000.json"
    record.write_text(json.dumps(rows))
    if is_half_undone:
        (folder / "converted.png").unlink()
        (kept / "converted.gif").rename(folder / "converted.gif")
    assert list_records(kept, ["crop"]) == list_records(kept) == [record]
    undo(record, "set aside")
    assert snapshot(folder) == before and not kept.exists()


def test_a_bulk_edit_can_be_undone_after_many_single_edits(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").touch()
        (tmp_path / f"{number}.txt").write_text(f"tag {number}")
    before = snapshot(tmp_path)
    captions, _ = write_plan(plan_edit(load_captions(tmp_path), lambda text: f"{text}, bulk"))
    for number in range(120):
        captions, _ = write_plan(plan_edit(captions, add_tags([str(number)]), among=[0]))
    for record in list_backups(tmp_path):
        undo(record)
    assert snapshot(tmp_path) == before


def test_a_later_edit_between_two_steps_starts_a_new_record(folder: Path) -> None:
    place = folder / BACKUPS
    first = Journal(place, folder, "captions")
    before = snapshot(folder)
    first.apply([FileEdit(folder / "caption.txt", b"tagged")])
    assert first.continued() is first
    second = Journal(place, folder, "captions")
    second.apply([FileEdit(folder / "caption.txt", b"typed")])
    third = first.continued()
    third.apply([FileEdit(folder / "caption.txt", b"tagged again")])
    for record in list_records(place):
        undo(record)
    assert snapshot(folder) == before
