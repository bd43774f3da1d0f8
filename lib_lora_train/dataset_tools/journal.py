"""Edits of the user's files that can be undone, even after a crash: write ahead, apply, commit.

A record is a file of JSON lines: a header, a line per changed file, and a last line when the edit is complete. A line
is on disk before its file is changed, and every file is replaced as a whole, so a file is always in one of the two
states that its line names. Undoing compares and restores what is left to restore; it can be repeated after a crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import DataError, OutputError
from lib_lora_train.dataset_tools.journal_records import (
    HEADER,
    SUFFIX,
    FileChange,
    Record,
    content_hash,
    format_change,
    format_rename,
    list_records,
    load_record,
)

IfChanged = Literal["refuse", "leave", "set aside"]
"""What undoing does with a file that was changed after the edit: nothing at all, leave it, or move it aside."""

_lock = threading.RLock()  # one edit of the user's files at a time
_MAX_BYTES = 64 * 2**20
_MAX_RECORDS = 2000


@dataclass(frozen=True)
class FileEdit:
    """The new content of a file, None to remove it.

    The old content goes to the file `kept`, or into the record without one. DataError if it is not `expected`, a hash.
    """

    file: Path
    content: bytes | None
    kept: Path | None = None
    expected: str | None = None


class Journal:
    """One edit of files in `root` that is undone as a whole, applied in one go or step by step.

    The record is `folder`/MOMENT-KIND.undo.jsonl. Nothing is written before the first change.
    """

    def __init__(self, folder: Path, root: Path, kind: str) -> None:
        self._root = root
        self._folder = folder
        self._kind = kind
        self.path = folder / f"{_moment()}-{kind}{SUFFIX}"

    @property
    def written(self) -> Path | None:
        """The record, None if nothing was changed."""
        return self.path if self.path.exists() else None

    def apply(self, edits: Sequence[FileEdit]) -> int:
        """Record and apply the edits, all or none of them; the number of files changed.

        DataError if a file is not as expected, OutputError if one cannot be written; then none is changed.
        """
        with _lock:
            pairs = [(edit, change) for edit in edits if (change := _plan(edit)) is not None]
            if not pairs:
                return 0
            size = self._append([format_change(change, self._root, self._folder) for _, change in pairs])
            current = pairs[0][0].file
            try:
                for edit, change in pairs:
                    current = edit.file
                    _apply(edit, change)
            except OSError as error:
                if _revert([change for _, change in pairs]):
                    self._truncate(size)
                reason = error.strerror or error
                raise OutputError(f"{current} cannot be written: {reason}. Nothing was changed.") from error
            return len(pairs)

    def rename_folder(self, folder: Path, new: Path) -> None:
        """Record and rename a folder in the root; OutputError, with nothing changed, if that fails."""
        with _lock:
            size = self._append([format_rename(folder, new, self._root)])
            try:
                folder.rename(new)
            except OSError as error:
                self._truncate(size)
                raise OutputError(f"{folder} cannot be renamed: {error.strerror or error}.") from error

    def commit(self) -> Path | None:
        """Mark the edit as complete; the record, None if nothing was changed."""
        if self.written is None:
            return None
        with contextlib.suppress(OutputError):  # without the mark it can still be undone
            self._append([{"complete": True}])
        _delete_oldest(self._folder, self.path)
        return self.path

    def continued(self) -> Journal:
        """This journal, or a new one if another edit of the same folder was recorded later.

        Records are undone latest first, which only works if no later edit lies between the changes of one.
        """
        newest = next(iter(list_records(self._folder)), self.path)
        if self.written is None or newest == self.path:
            return self
        return Journal(self._folder, self._root, self._kind)

    def _append(self, rows: Sequence[dict[str, Any]]) -> int:
        """The size before; every line starts with its own line break, so that a torn one spoils no other."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            size = self.path.stat().st_size if self.path.exists() else 0
            root = os.path.relpath(self._root.absolute(), self._folder.absolute())
            lines = [{HEADER: 1, "root": root}, *rows] if not size else rows
            with self.path.open("ab") as file:
                file.write("".join(f"\n{json.dumps(row)}" for row in lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{self.path} cannot be written: {reason}. Nothing was changed.") from error
        return size

    def _truncate(self, size: int) -> None:
        with contextlib.suppress(OSError):
            if size:
                os.truncate(self.path, size)
            else:
                self.path.unlink()
                self._folder.rmdir()  # fails if it is not empty


def _moment() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}-{nanoseconds:09}"


def _delete_oldest(folder: Path, newest: Path) -> None:
    """Keep the records within their limits. They are deleted from the oldest, so that the others stay undoable."""
    total = 0
    for number, record in enumerate(list_records(folder)):
        with contextlib.suppress(OSError):
            total += record.stat().st_size
            if (total > _MAX_BYTES or number >= _MAX_RECORDS) and record != newest and _keeps_no_files(record):
                record.unlink()


def _keeps_no_files(record: Path) -> bool:
    try:
        return not any(isinstance(change.before, Path) for change in load_record(record).changes)
    except DataError:
        return False


# --- applying -------------------------------------------------------------------------------------


def _plan(edit: FileEdit) -> FileChange | None:
    """The change, None if the file has its new content already."""
    content = _read(edit.file)
    before, after = content_hash(content), content_hash(edit.content)
    if edit.expected is not None and before != edit.expected:
        raise DataError(f"{edit.file} has changed since it was read. Open the folder again.")
    if before == after:
        return None
    return FileChange(edit.file, edit.kept if content is not None and edit.kept else content, before, after)


def _read(file: Path) -> bytes | None:
    """The content, None if there is no file; DataError if it cannot be read."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}. Nothing was changed.") from error


def _apply(edit: FileEdit, change: FileChange) -> None:
    if isinstance(change.before, Path):
        change.before.parent.mkdir(parents=True, exist_ok=True)
        if edit.content is None:
            _move(edit.file, change.before)
            return
        _copy(edit.file, change.before)
    _write(edit.file, edit.content)


def _write(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    else:
        atomic_write.write_bytes(file, content)


def _copy(file: Path, target: Path) -> None:
    """A hard link where the disk has them: `file` is replaced next, not changed."""
    try:
        os.link(file, target)
    except OSError:
        with atomic_write.replacing(target) as part:
            shutil.copy2(file, part)


def _move(file: Path, target: Path) -> None:
    """Like `Path.replace`, also to another disk; the file is never missing from both places."""
    try:
        file.replace(target)
    except OSError:
        if not file.exists():
            raise
        with atomic_write.replacing(target) as part:
            shutil.copy2(file, part)
        file.unlink()


def _revert(changes: Sequence[FileChange]) -> bool:
    """Whether all files are as they were before the changes."""
    try:
        for change in reversed(changes):
            _restore(change, content_hash(_read(change.file)))
    except (OSError, DataError):
        return False
    return True


# --- undoing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Undone:
    """The number of files restored, and those left because they were changed after the edit."""

    restored: int
    left: tuple[Path, ...] = ()


def undo(path: Path, if_changed: IfChanged = "refuse") -> Undone:
    """Restore what the recorded edit changed, then delete its record.

    DataError, with nothing changed, if the record or a kept file is missing or damaged, or if a file was changed after
    the edit and `if_changed` is "refuse". OutputError if a file cannot be restored; undoing again does the rest.
    """
    with _lock:
        record = load_record(path)
        current = {change.file: content_hash(_read(change.file)) for change in record.changes}
        states = {change.file: _predicted(record, change, current) for change in record.changes}
        changed = {file for file, state in states.items() if state == "changed"}
        _require_restorable(record, path, states, frozenset() if if_changed == "set aside" else frozenset(changed))
        if changed and if_changed == "refuse":
            name = sorted(file.name for file in changed)[0]
            raise DataError(f"{name} has changed since this edit, so nothing was undone. The record is {path}.")
        left = frozenset(changed) if if_changed == "leave" else frozenset()
        _rename_back(record)
        try:
            for change in reversed(record.changes):
                if change.file in changed - left:
                    changed.remove(change.file)
                    _set_aside(change, path.parent)
                if change.file not in left:
                    _restore(change, content_hash(_read(change.file)))
            path.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{change.file} cannot be restored: {reason}. Free it and press Undo again.") from error
        _remove_empty_folders(record, path.parent)
        return Undone(len(record.changes) + len(record.renames) - len(left), tuple(sorted(left)))


def _rename_back(record: Record) -> None:
    pairs = [(old, new) for old, new in reversed(record.renames) if new.is_dir()]
    taken = next((old for old, _ in pairs if old.exists()), None)
    if taken:
        raise DataError(f"{taken} exists again, so nothing was undone. Rename it first.")
    for old, new in pairs:
        try:
            new.rename(old)
        except OSError as error:
            raise OutputError(f"{new} cannot be renamed: {error.strerror or error}. Press Undo again.") from error


def _predicted(record: Record, last: FileChange, current: dict[Path, str]) -> str:
    """undone, applied or changed: the state of a file that the record may change several times."""
    found = current[last.file]
    own = [change for change in record.changes if change.file == last.file]
    if own[0].is_before(found):
        return "undone"
    return "applied" if any(change.is_after(found) for change in own) else "changed"


def _require_restorable(record: Record, path: Path, states: dict[Path, str], skipped: Collection[Path]) -> None:
    if not record.root.is_dir():
        raise DataError(f"{record.root} does not exist. Move the folder back to undo {path.name}; nothing was changed.")
    for change in record.changes:
        if states[change.file] == "undone" or change.file in skipped or not isinstance(change.before, Path):
            continue
        if not change.before.exists():
            raise DataError(f"{change.before} is missing; nothing was restored.")


def _set_aside(change: FileChange, folder: Path) -> None:
    if change.file.exists():
        _move(change.file, free_path(folder / change.file.name))


def _restore(change: FileChange, current: str) -> None:
    """Bring the file back to its state before the change, whatever part of it was applied or undone."""
    kept = change.before if isinstance(change.before, Path) else None
    if kept is None:
        if current != change.before_hash:
            _write(change.file, change.before if isinstance(change.before, bytes) else None)
    elif kept.exists():
        if change.is_before(current):
            kept.unlink()  # a copy that was made before, or left after, the file itself was changed
        else:
            change.file.parent.mkdir(parents=True, exist_ok=True)
            _move(kept, change.file)


def _remove_empty_folders(record: Record, folder: Path) -> None:
    parents = {change.before.parent for change in record.changes if isinstance(change.before, Path)} | {folder}
    for parent in sorted(parents, key=lambda one: -len(one.parts)):
        with contextlib.suppress(OSError):
            parent.rmdir()  # fails if it is not empty


def free_path(path: Path) -> Path:
    """The path, or one with a number appended to its name, where no file exists yet."""
    free, number = path, 2
    while free.exists():
        free = path.with_name(f"{path.stem} ({number}){path.suffix}")
        number += 1
    return free
