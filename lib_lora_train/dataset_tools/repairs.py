"""The doctor's repairs, done on files. Nothing is destroyed: what is changed or put away is kept beside the folder.

The originals of `cats` lie in `cats-originals`, in the same sub-folders, with a list from which `write_undo` restores.
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
from lib_lora_train.dataset.captions import CAPTION_EXTENSIONS, decode_caption
from lib_lora_train.dataset.images import (
    DECODING_ERRORS,
    TRANSPOSE_BY_ORIENTATION,
    flatten,
    read_bytes,
    read_orientation,
    to_eight_bits,
)
from lib_lora_train.dataset.masks import find_masks
from lib_lora_train.dataset_tools.checkup import Finding, Repair

SHRUNK_SIDE = 2048
"""Longest side of an image after it was shrunk, in px; more than any bucket of a resolution up to 1024 needs."""

_ENCODING = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}, "PNG": {}, "BMP": {}}
_ORDER: tuple[Repair, ...] = ("turn", "first frame", "convert", "flatten", "shrink", "to UTF-8", "write caption")


@dataclass(frozen=True)
class RepairResult:
    """What was done: the paths that were repaired, those that could not be with the reason, and the list for undoing.

    `left` is how many were not come to because it was stopped.
    """

    repaired: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]
    undo: Path | None
    left: int = 0

    def __str__(self) -> str:
        kept = f" The originals lie in {self.undo.parent}." if self.undo else ""
        failed = f" {len(self.failed)} could not be: {self.failed[0][1]}" if self.failed else ""
        repaired = f"{len(self.repaired)} {'file' if len(self.repaired) == 1 else 'files'} repaired."
        left = f" Stopped: {self.left} {'is' if self.left == 1 else 'are'} left as before." if self.left else ""
        return f"{repaired}{kept}{failed}{left}"


def originals_folder(folder: Path) -> Path:
    """Where the originals of a data folder are kept."""
    return folder.with_name(f"{folder.name}-originals")


def write_repairs(
    folder: Path,
    findings: Iterable[Finding],
    *,
    words: str = "",
    on_progress: Callable[[int, int], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> RepairResult:
    """Do what the findings' repairs say; `words` (trigger and class word) become the missing captions.

    Files are repaired one by one, until it is stopped: what cannot be done is told with its reason and leaves that file
    as it was. `on_progress` is called with (done, total).
    OutputError if the originals' folder cannot be written.
    """
    by_path: dict[Path, set[Repair]] = {}
    for finding in findings:
        if finding.repair and (finding.repair != "write caption" or words.strip()):
            by_path.setdefault(finding.path, set()).add(finding.repair)
    surgery = _FileEditor(folder.absolute())
    repaired, failed = [], []
    for number, (path, repairs) in enumerate(by_path.items(), start=1):
        try:
            surgery.treat(path.absolute(), repairs, words.strip())
            repaired.append(path)
        except (LoraTrainError, OSError, *DECODING_ERRORS) as error:
            failed.append((path, f"{path.name}: {str(error) or repr(error)}"))
        if on_progress:
            on_progress(number, len(by_path))
        if is_stopped():
            break
    left = len(by_path) - len(repaired) - len(failed)
    return RepairResult(tuple(repaired), tuple(failed), surgery.write_list(), left)


def write_replacements(folder: Path, contents: Mapping[Path, tuple[Path, bytes]]) -> RepairResult:
    """Write other contents in the place of files, each as (path, bytes); the originals are kept as in `write_repairs`."""
    surgery = _FileEditor(folder.absolute())
    repaired, failed = [], []
    for path, (new_path, content) in contents.items():
        try:
            surgery.replace(path.absolute(), content, new_path.absolute())
            repaired.append(path)
        except (LoraTrainError, OSError) as error:
            failed.append((path, f"{path.name}: {error}"))
    return RepairResult(tuple(repaired), tuple(failed), surgery.write_list())


def edited_image(path: Path, edit: Callable[[Image.Image], Image.Image]) -> tuple[Path, bytes]:
    """(path, content) of what `edit` makes of the upright image, in its own format where that can be, else as PNG.

    Transparency stays. DataError if the file does not decode.
    """
    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            kind = opened.format or ""
            orientation = read_orientation(opened, content)
            opened.seek(0)
            has_alpha = opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info
            plain = to_eight_bits(opened)
            image = plain.convert("RGBA" if has_alpha else "L" if plain.mode in ("L", "1") else "RGB")
    except DECODING_ERRORS as error:
        raise DataError(f"{path} cannot be decoded: {str(error) or repr(error)}. Replace or remove it.") from error
    if orientation in TRANSPOSE_BY_ORIENTATION:
        image = image.transpose(TRANSPOSE_BY_ORIENTATION[orientation])
    if kind not in _ENCODING or (has_alpha and kind in ("JPEG", "BMP")):
        kind, path = "PNG", path.with_suffix(".png")
    written = io.BytesIO()
    edit(image).save(written, kind, **_ENCODING[kind])
    return path, written.getvalue()


def write_undo(undo: Path) -> int:
    """Put the originals of a list back and remove what was written instead; how many files. The list is used up.

    What was written and is another file by now (edited, cropped since) is kept among the originals instead of removed.
    DataError, with nothing changed, if the list cannot be read or an original is gone.
    """
    try:
        steps = [_step_of(row) for row in json.loads(_text(undo))]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{undo} cannot be read; nothing is restored.") from error
    gone = [step.kept for step in steps if step.kept and not step.kept.exists()]
    if gone:
        raise DataError(f"{gone[0]} is gone; nothing is restored.")
    for step in reversed(steps):
        if step.written and step.written.exists():
            if step.content_hash in ("", _hash(step.written.read_bytes())):
                step.written.unlink()
            else:
                shutil.move(step.written, _free(undo.parent / step.written.name))
        if step.kept:
            shutil.move(step.kept, step.original)
    undo.unlink()
    with contextlib.suppress(OSError):
        undo.parent.rmdir()  # only if it is empty now
    return len(steps)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class _Step:
    """One file: where it was, where it is kept (None: there was none) and what was written (None: nothing).

    `content_hash` is the sha256 (hex) of what was written, "" in older lists.
    """

    original: Path
    kept: Path | None
    written: Path | None
    content_hash: str = ""


def _step_of(row: Mapping[str, Any]) -> _Step:
    """A row of an undo list; KeyError, TypeError if it is none."""
    kept, written = (Path(row[name]) if row[name] else None for name in ("kept", "written"))
    return _Step(Path(row["original"]), kept, written, row.get("content_hash", ""))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _free(place: Path) -> Path:
    """The place, or one with a number behind its name, where no file is yet."""
    free, number = place, 2
    while free.exists():
        free = place.with_name(f"{place.stem} ({number}){place.suffix}")
        number += 1
    return free


class _FileEditor:
    """The files repaired so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._originals = originals_folder(folder)
        self._steps: list[_Step] = []

    def treat(self, path: Path, repairs: set[Repair], words: str) -> None:
        """Do all repairs of one file."""
        if "set aside" in repairs:
            for file in (path, *_companions(path)):
                self._steps.append(_Step(file, self._kept(file), None))
            return
        done = [repair for repair in _ORDER if repair in repairs]
        if done == ["write caption"]:
            self.replace(_caption_file(path), f"{words}\n".encode())
        elif done == ["to UTF-8"]:
            self.replace(path, decode_caption(read_bytes(path))[0].encode())
        else:
            new_path, content = _treated_image(path, done)
            self.replace(path, content, new_path)
            if "write caption" in repairs:
                self.replace(_caption_file(path), f"{words}\n".encode())

    def write_list(self) -> Path | None:
        """The list for undoing, None where nothing was done."""
        if not self._steps:
            return None
        rows = [
            {
                "original": str(step.original),
                "kept": step.kept and str(step.kept),
                "written": step.written and str(step.written),
                "content_hash": step.content_hash,
            }
            for step in self._steps
        ]
        path = self._originals / f"undo-{time.time_ns()}.json"
        atomic_write.write_text(path, json.dumps(rows, indent=1), make_parents=True)
        return path

    def replace(self, path: Path, content: bytes, new_path: Path | None = None) -> None:
        """Keep the file and write the content in its place, or under another name, which must be free."""
        target = new_path or path
        if target != path and target.exists():
            raise DataError(f"{target.name} is there already; rename one of the two.")
        kept = self._kept(path) if path.exists() else None
        try:
            atomic_write.write_bytes(target, content)
        except OSError:
            if kept:
                shutil.move(kept, path)
            raise
        self._steps.append(_Step(path, kept, target, _hash(content)))

    def _kept(self, path: Path) -> Path:
        """Move a file to the originals; a file of that name that is kept already stays."""
        place = _free(self._originals / path.relative_to(self._folder))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, place)
        except OSError as error:
            raise OutputError(f"{place} cannot be written: {error.strerror or error}. The file stays.") from error
        return place


def _companions(path: Path) -> list[Path]:
    """The captions and the mask of an image that no other image of its name has.

    A mask that stayed behind alone would be taken for an image.
    """
    if path.suffix.lower() in CAPTION_EXTENSIONS:
        return []
    others = [file for file in path.parent.glob(f"{_escaped(path.stem)}.*") if file != path]
    captions = [file for file in others if file.suffix.lower() in CAPTION_EXTENSIONS]
    if len(captions) != len(others):
        return []
    mask = find_masks(path.parent.iterdir()).get(path.stem)
    return [*captions, *([mask] if mask else [])]


def _escaped(stem: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in stem)


def _caption_file(image: Path) -> Path:
    """The empty caption file that is there, else the one to be made."""
    present = [image.with_suffix(ending) for ending in CAPTION_EXTENSIONS if image.with_suffix(ending).exists()]
    return present[0] if present else image.with_suffix(".txt")


def _treated_image(path: Path, repairs: Sequence[Repair]) -> tuple[Path, bytes]:
    """(path, content) of the image after the repairs, in its own format where that can be, else as PNG."""
    content = read_bytes(path)
    with Image.open(io.BytesIO(content)) as opened:
        kind = opened.format or ""
        orientation = read_orientation(opened, content)
        opened.seek(0)
        image = flatten(opened) if "flatten" in repairs or opened.mode not in _PLAIN_MODES else opened.copy()
    if orientation in TRANSPOSE_BY_ORIENTATION:  # the note is lost in writing, so that it must be obeyed
        image = image.transpose(TRANSPOSE_BY_ORIENTATION[orientation])
    if "shrink" in repairs:
        image.thumbnail((SHRUNK_SIDE, SHRUNK_SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if "convert" in repairs or kind not in _ENCODING:
        kind, path = "PNG", path.with_suffix(".png")
    written = io.BytesIO()
    image.save(written, kind, **_ENCODING[kind])
    return path, written.getvalue()


_PLAIN_MODES = ("RGB", "RGBA", "L", "LA")
