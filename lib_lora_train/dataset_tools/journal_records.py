"""The records of undoable edits: their lines, and reading those of earlier versions."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import DataError

SUFFIX = ".undo.jsonl"
HEADER = "lora-train-undo"
_PATTERNS = (f"*{SUFFIX}", "[0-9]*-*.json", "undo-*.json")
_OLD_LIST = re.compile(r"undo-(\d+)\.json")


@dataclass(frozen=True)
class FileChange:
    """A file before and after an edit.

    `before` is its content, the file that keeps it, or None if there was no file. Hashes are sha256 (hex), "" for no
    file and None if an earlier version did not record them.
    """

    file: Path
    before: bytes | Path | None
    before_hash: str | None
    after_hash: str | None

    def is_before(self, found: str) -> bool:
        """Whether `found`, the hash of the present content, is that from before the change."""
        if self.before_hash is not None:
            return found == self.before_hash
        return isinstance(self.before, Path) and not self.before.exists() and found not in ("", self.after_hash)

    def is_after(self, found: str) -> bool:
        """Whether `found` is the hash from after the change."""
        return bool(found) if self.after_hash is None else found == self.after_hash


@dataclass(frozen=True)
class Record:
    """The changes of one edit in the order they were made; `is_complete` is False if it was interrupted."""

    root: Path
    changes: tuple[FileChange, ...]
    is_complete: bool
    renames: tuple[tuple[Path, Path], ...] = ()
    """Folders before and after they were renamed."""


def content_hash(content: bytes | None) -> str:
    """The sha256 (hex), "" for no file."""
    return "" if content is None else hashlib.sha256(content).hexdigest()


def list_records(folder: Path, kinds: Collection[str] = ()) -> list[Path]:
    """The readable records in a folder, latest first; records of earlier versions count as every kind."""
    found = {path for pattern in _PATTERNS for path in folder.glob(pattern)}
    wanted = [path for path in found if not kinds or _kind(path) in (*kinds, "")]
    return sorted((path for path in wanted if _looks_complete(path)), key=_moment, reverse=True)


def _kind(path: Path) -> str:
    """`20260101-000000-000000001-crop.undo.jsonl` → crop; "" for records of earlier versions."""
    name = path.name
    return name.removesuffix(SUFFIX).split("-", 3)[-1] if name.endswith(SUFFIX) else ""


def _moment(path: Path) -> str:
    """A sort key: the time in the name."""
    old = _OLD_LIST.fullmatch(path.name)
    if not old:
        return path.name
    seconds, nanoseconds = divmod(int(old[1]), 10**9)
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}-{nanoseconds:09}"


def _looks_complete(path: Path) -> bool:
    """False for a file that a crash has torn, without reading all of it."""
    try:
        with path.open("rb") as file:
            first = file.read(256)
            file.seek(-min(64, path.stat().st_size), os.SEEK_END)
            last = file.read()
    except OSError:
        return False
    if path.name.endswith(SUFFIX):
        return f'"{HEADER}"'.encode() in first
    return first.lstrip().startswith(b"[") and last.rstrip().endswith(b"]")


# --- writing and reading a record -----------------------------------------------------------------


def format_change(change: FileChange, root: Path, folder: Path) -> dict[str, Any]:
    """The change as a line of a record in `folder`; paths are relative, so that folders can be moved."""
    row: dict[str, Any] = {"file": change.file.relative_to(root).as_posix()}
    if isinstance(change.before, Path):
        row["kept"] = change.before.relative_to(folder).as_posix()
    elif change.before is not None:
        try:
            row["text"] = change.before.decode("utf-8")
        except UnicodeDecodeError:
            row["base64"] = base64.b64encode(change.before).decode()
    return {**row, "before": change.before_hash, "after": change.after_hash}


def format_rename(folder: Path, new: Path, root: Path) -> dict[str, Any]:
    """A renamed folder as a line of a record."""
    return {"folder": folder.relative_to(root).as_posix(), "renamed": new.relative_to(root).as_posix()}


def load_record(path: Path) -> Record:
    """The record, also one of an earlier version; DataError if it cannot be read."""
    try:
        content = path.read_text(encoding="utf-8")
        record = _parse_lines(path, content) if path.name.endswith(SUFFIX) else _parse_old(path, json.loads(content))
        for change in record.changes:
            pairs = [(change.file, record.root)]
            pairs += [(change.before, path.parent)] if isinstance(change.before, Path) else []
            _require_inside(pairs)
        _require_inside((folder, record.root) for pair in record.renames for folder in pair)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise DataError(f"{path} cannot be read; nothing was restored.") from error
    return record


def _parse_lines(path: Path, content: str) -> Record:
    """The record; a line that a crash has torn is left out, since its file was not changed yet."""
    rows = list(_rows(content))
    if not rows or HEADER not in rows[0]:
        raise ValueError("no header")
    root = Path(os.path.normpath(path.parent / rows[0]["root"]))
    changes = [
        FileChange(root / row["file"], _before(row, path.parent), row["before"], row["after"])
        for row in rows
        if "file" in row
    ]
    renames = [(root / row["folder"], root / row["renamed"]) for row in rows if "folder" in row]
    return Record(root, tuple(changes), rows[-1].get("complete") is True, tuple(renames))


def _rows(content: str) -> Iterator[dict[str, Any]]:
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _before(row: Mapping[str, Any], folder: Path) -> bytes | Path | None:
    if "kept" in row:
        return folder / str(row["kept"])
    if "base64" in row:
        return base64.b64decode(row["base64"])
    return str(row["text"]).encode() if "text" in row else None


def _require_inside(pairs: Iterable[tuple[Path, Path]]) -> None:
    """ValueError if a record, which may have come with a downloaded dataset, names files elsewhere."""
    for file, allowed in pairs:
        if not Path(os.path.normpath(file.absolute())).is_relative_to(os.path.normpath(allowed.absolute())):
            raise ValueError(f"{file} is outside of {allowed}")


# --- earlier versions -----------------------------------------------------------------------------


def _parse_old(path: Path, rows: list[Mapping[str, Any]]) -> Record:
    if path.name.startswith("undo-"):
        root = path.parent.with_name(path.parent.name.removesuffix("-originals"))
        changes = [change for row in rows for change in _parse_step(row)]
    else:
        root = path.parent.parent
        changes = [_parse_caption(root, row) for row in rows]
    return Record(root, tuple(changes), is_complete=True)


def _parse_caption(root: Path, row: Mapping[str, Any]) -> FileChange:
    encoded, text = row.get("before_base64"), row.get("before")
    before = base64.b64decode(encoded) if encoded else None if text is None else str(text).encode()
    return FileChange(root / row["file"], before, content_hash(before), content_hash(str(row["after"]).encode()))


def _parse_step(row: Mapping[str, Any]) -> Iterator[FileChange]:
    """A file that was moved to `kept`, and what was `written` instead, possibly under another name."""
    original = Path(row["original"])
    kept, written = (Path(row[name]) if row[name] else None for name in ("kept", "written"))
    after = row.get("content_hash") or None
    if written and written != original:
        yield FileChange(written, None, "", after)
        after = ""
    elif not written:
        after = ""
    if kept or written == original:
        yield FileChange(original, kept, None if kept else "", after)
