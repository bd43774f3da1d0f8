"""Repairs for the findings of the dataset check. Nothing is lost: the original of every changed or moved file is kept.

The originals of the folder `cats` go to `cats-originals` beside it, in the same sub-folders, with an undo list for
`write_undo`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import DataError, LoraTrainError, OutputError
from lib_lora_train.dataset.caption_encoding import decode_caption
from lib_lora_train.dataset.captions import CAPTION_EXTENSIONS
from lib_lora_train.dataset.folder_contents import scan_folder
from lib_lora_train.dataset.folder_names import ORIGINALS_SUFFIX
from lib_lora_train.dataset.images import (
    TRANSPOSE_BY_ORIENTATION,
    decoding,
    flatten,
    may_be_transparent,
    read_bytes,
    read_orientation,
    to_eight_bits,
)
from lib_lora_train.dataset_tools.checkup import Finding, Repair

SHRUNK_SIDE = 2048
"""Longest side in px after shrinking; more than any bucket of a resolution up to 1024 needs."""

_SAVE_OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}, "PNG": {}, "BMP": {}}
_ORDER: tuple[Repair, ...] = ("rotate", "first frame", "convert", "flatten", "shrink", "to UTF-8", "write caption")


@dataclass(frozen=True)
class RepairResult:
    """The repaired paths, the failed ones with the reason, and the undo list (None if nothing was changed).

    `remaining` is the number of files not reached because the work was stopped.
    """

    repaired: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]
    undo: Path | None
    remaining: int = 0

    def __str__(self) -> str:
        kept = f" The originals are in {self.undo.parent}." if self.undo else ""
        failed = f" {len(self.failed)} failed: {self.failed[0][1]}" if self.failed else ""
        repaired = f"{len(self.repaired)} {'file' if len(self.repaired) == 1 else 'files'} repaired."
        stopped = f" Stopped: {self.remaining} not repaired." if self.remaining else ""
        return f"{repaired}{kept}{failed}{stopped}"


def originals_folder(folder: Path) -> Path:
    """Where the originals of a data folder are kept."""
    return folder.with_name(f"{folder.name}{ORIGINALS_SUFFIX}")


def write_repairs(
    folder: Path,
    findings: Iterable[Finding],
    *,
    words: str = "",
    on_progress: Callable[[int, int], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> RepairResult:
    """Apply the repairs of the findings; `words` (trigger and class word) become the missing captions.

    Files are repaired one by one until `is_stopped` returns True. A failed repair is reported and leaves its file
    unchanged. `on_progress` is called with (done, total). OutputError if the originals' folder cannot be written.
    """
    by_path: dict[Path, set[Repair]] = {}
    for finding in findings:
        if finding.repair and (finding.repair != "write caption" or words.strip()):
            by_path.setdefault(finding.path, set()).add(finding.repair)
    editor = _FileEditor(folder.absolute())
    repaired, failed = [], []
    for number, (path, repairs) in enumerate(by_path.items(), start=1):
        try:
            editor.repair(path.absolute(), repairs, words.strip())
            repaired.append(path)
        except (LoraTrainError, OSError) as error:
            failed.append((path, f"{path.name}: {str(error) or repr(error)}"))
        if on_progress:
            on_progress(number, len(by_path))
        if is_stopped():
            break
    remaining = len(by_path) - len(repaired) - len(failed)
    return RepairResult(tuple(repaired), tuple(failed), editor.write_undo_list(), remaining)


def write_replacements(folder: Path, contents: Mapping[Path, tuple[Path, bytes]]) -> RepairResult:
    """Replace files by (path, bytes); the originals are kept as in `write_repairs`."""
    editor = _FileEditor(folder.absolute())
    repaired, failed = [], []
    for path, (new_path, content) in contents.items():
        try:
            editor.replace(path.absolute(), content, new_path.absolute())
            repaired.append(path)
        except (LoraTrainError, OSError) as error:
            failed.append((path, f"{path.name}: {error}"))
    return RepairResult(tuple(repaired), tuple(failed), editor.write_undo_list())


def edit_image(path: Path, edit: Callable[[Image.Image], Image.Image]) -> tuple[Path, bytes]:
    """(path, content) of the upright image after `edit`, in its own format if possible, else as PNG.

    Transparency is kept. DataError if the file does not decode.
    """
    content = read_bytes(path)
    with decoding(path), Image.open(io.BytesIO(content)) as opened:
        image_format = opened.format or ""
        orientation = read_orientation(opened, content)
        opened.seek(0)
        has_alpha = may_be_transparent(opened)
        plain = to_eight_bits(opened)
        image = plain.convert("RGBA" if has_alpha else "L" if plain.mode in ("L", "1") else "RGB")
    if orientation in TRANSPOSE_BY_ORIENTATION:
        image = image.transpose(TRANSPOSE_BY_ORIENTATION[orientation])
    if image_format not in _SAVE_OPTIONS or (has_alpha and image_format in ("JPEG", "BMP")):
        image_format, path = "PNG", path.with_suffix(".png")
    return path, _encode(edit(image), image_format)


def _encode(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **_SAVE_OPTIONS[image_format])
    return buffer.getvalue()


def write_undo(undo: Path) -> int:
    """The number of files restored from an undo list, which is then deleted.

    Files written by the repair are removed; those changed since (edited, cropped) are moved to the originals instead.
    DataError, with nothing changed, if the list cannot be read or an original is missing.
    """
    try:
        steps = [_parse_step(row) for row in json.loads(read_bytes(undo))]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{undo} cannot be read; nothing was restored.") from error
    missing = [step.backup for step in steps if step.backup and not step.backup.exists()]
    if missing:
        raise DataError(f"{missing[0]} is missing; nothing was restored.")
    for step in reversed(steps):
        if step.written and step.written.exists():
            if step.content_hash in ("", _hash(step.written.read_bytes())):
                step.written.unlink()
            else:
                shutil.move(step.written, _free_path(undo.parent / step.written.name))
        if step.backup:
            shutil.move(step.backup, step.original)
    undo.unlink()
    with contextlib.suppress(OSError):
        undo.parent.rmdir()  # fails if it is not empty
    return len(steps)


@dataclass(frozen=True)
class _Step:
    """One file: where it was, where the original is kept (None: there was none), what was written (None: nothing).

    `content_hash` is the sha256 (hex) of the written content, "" in older lists.
    """

    original: Path
    backup: Path | None
    written: Path | None
    content_hash: str = ""


def _parse_step(row: Mapping[str, Any]) -> _Step:
    """The step in a row of an undo list; KeyError or TypeError if the row is invalid."""
    backup, written = (Path(row[name]) if row[name] else None for name in ("kept", "written"))
    return _Step(Path(row["original"]), backup, written, row.get("content_hash", ""))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _free_path(path: Path) -> Path:
    """The path, or one with a number appended to its name, where no file exists yet."""
    free, number = path, 2
    while free.exists():
        free = path.with_name(f"{path.stem} ({number}){path.suffix}")
        number += 1
    return free


class _FileEditor:
    """Changes files, keeps their originals and records the undo list."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._originals = originals_folder(folder)
        self._steps: list[_Step] = []

    def repair(self, path: Path, repairs: set[Repair], words: str) -> None:
        """Apply all repairs of one file."""
        if "set aside" in repairs:
            for file in (path, *_companions(path)):
                self._steps.append(_Step(file, self._move_to_originals(file), None))
            return
        done = [repair for repair in _ORDER if repair in repairs]
        if done == ["write caption"]:
            self.replace(_caption_file(path), f"{words}\n".encode())
        elif done == ["to UTF-8"]:
            self.replace(path, decode_caption(read_bytes(path))[0].encode())
        else:
            new_path, content = _repair_image(path, done)
            self.replace(path, content, new_path)
            if "write caption" in repairs:
                self.replace(_caption_file(path), f"{words}\n".encode())

    def write_undo_list(self) -> Path | None:
        """The undo list's file, None if nothing was done."""
        if not self._steps:
            return None
        rows = [
            {
                "original": str(step.original),
                "kept": step.backup and str(step.backup),
                "written": step.written and str(step.written),
                "content_hash": step.content_hash,
            }
            for step in self._steps
        ]
        path = self._originals / f"undo-{time.time_ns()}.json"
        atomic_write.write_text(path, json.dumps(rows, indent=1), make_parents=True)
        return path

    def replace(self, path: Path, content: bytes, new_path: Path | None = None) -> None:
        """Move the file to the originals and write the content in its place or to `new_path`, which must be free."""
        target = new_path or path
        if target != path and target.exists():
            raise DataError(f"{target.name} exists already; rename one of the two.")
        backup = self._move_to_originals(path) if path.exists() else None
        try:
            atomic_write.write_bytes(target, content)
        except OSError:
            if backup:
                shutil.move(backup, path)
            raise
        self._steps.append(_Step(path, backup, target, _hash(content)))

    def _move_to_originals(self, path: Path) -> Path:
        """The new path of a file after moving it to the originals, without overwriting one there."""
        backup = _free_path(self._originals / path.relative_to(self._folder))
        try:
            backup.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, backup)
        except OSError as error:
            raise OutputError(f"{backup} cannot be written: {error.strerror or error}. Nothing was changed.") from error
        return backup


def _companions(path: Path) -> list[Path]:
    """The captions and the mask of an image, unless another image has the same stem.

    A mask left behind alone would be trained on as an image.
    """
    if path.suffix.lower() in CAPTION_EXTENSIONS:
        return []
    others = [file for file in path.parent.glob(f"{_escape_glob(path.stem)}.*") if file != path]
    captions = [file for file in others if file.suffix.lower() in CAPTION_EXTENSIONS]
    if len(captions) != len(others):
        return []
    mask = scan_folder(path.parent).masks.get(path.stem)
    return [*captions, *([mask] if mask else [])]


def _escape_glob(stem: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in stem)


def _caption_file(image: Path) -> Path:
    """The existing (empty) caption file, else the one to create."""
    existing = [image.with_suffix(suffix) for suffix in CAPTION_EXTENSIONS if image.with_suffix(suffix).exists()]
    return existing[0] if existing else image.with_suffix(".txt")


def _repair_image(path: Path, repairs: Sequence[Repair]) -> tuple[Path, bytes]:
    """(path, content) of the image after the repairs, in its own format if possible, else as PNG."""
    content = read_bytes(path)
    with decoding(path), Image.open(io.BytesIO(content)) as opened:
        image_format = opened.format or ""
        orientation = read_orientation(opened, content)
        opened.seek(0)
        image = flatten(opened) if "flatten" in repairs or opened.mode not in _PLAIN_MODES else opened.copy()
    if orientation in TRANSPOSE_BY_ORIENTATION:  # saving drops the EXIF tag, so apply it
        image = image.transpose(TRANSPOSE_BY_ORIENTATION[orientation])
    if "shrink" in repairs:
        image.thumbnail((SHRUNK_SIDE, SHRUNK_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if "convert" in repairs or image_format not in _SAVE_OPTIONS:
        image_format, path = "PNG", path.with_suffix(".png")
    return path, _encode(image, image_format)


_PLAIN_MODES = ("RGB", "RGBA", "L", "LA")
