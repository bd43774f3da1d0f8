"""Repairs for the findings of the dataset check. Nothing is lost: the original of every changed or moved file is kept.

The originals of the folder `cats` go to `cats-originals` beside it, in the same sub-folders, with a record for
`write_undo`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lib_lora_train.core.errors import DataError, LoraTrainError
from lib_lora_train.core.wording import count, without_name
from lib_lora_train.dataset.caption_encoding import decode_as
from lib_lora_train.dataset.captions import CAPTION_EXTENSIONS
from lib_lora_train.dataset.folder_contents import scan_folder
from lib_lora_train.dataset.folder_names import ORIGINALS_SUFFIX, name_without_date
from lib_lora_train.dataset.images import (
    TRANSPOSE_BY_ORIENTATION,
    decoding,
    flatten,
    may_be_transparent,
    open_image,
    read_bytes,
    read_orientation,
    to_eight_bits,
)
from lib_lora_train.dataset_tools.checkup import FileState, Finding, Repair, read_state
from lib_lora_train.dataset_tools.journal import FileEdit, Journal, free_path, undo
from lib_lora_train.dataset_tools.journal_records import list_records

SHRUNK_SIDE = 2048
"""Longest side in px after shrinking; more than any bucket of a resolution up to 1024 needs."""

_SAVE_OPTIONS = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}, "PNG": {}, "BMP": {}}
_ORDER: tuple[Repair, ...] = ("rotate", "first frame", "convert", "flatten", "shrink", "to UTF-8", "write caption")


@dataclass(frozen=True)
class RepairResult:
    """The repaired paths, the failed ones with the reason, and the record for Undo (None if nothing was changed).

    `remaining` is the number of files not reached because the work was stopped.
    """

    repaired: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]
    undo: Path | None
    remaining: int = 0

    def __str__(self) -> str:
        kept = f" The originals are in {self.undo.parent}." if self.undo else ""
        failed = f" {len(self.failed)} failed: {self.failed[0][1]}" if self.failed else ""
        repaired = f"{count(len(self.repaired), 'file')} repaired."
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
    encodings: Mapping[Path, str] | None = None,
    seen: Mapping[Path, FileState] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> RepairResult:
    """Apply the repairs of the findings; `words` (trigger and class word) become the missing captions.

    `encodings` are those that the user chose for captions that are not Unicode; the others are left alone. Files that
    are no longer as `seen` are left alone too.

    Files are repaired one by one until `is_stopped` returns True. A failed repair is reported and leaves its file
    unchanged. `on_progress` is called with (done, total). OutputError if the originals' folder cannot be written.
    """
    by_path: dict[Path, set[Repair]] = {}
    for finding in findings:
        if finding.repair and (finding.repair != "write caption" or words.strip()):
            by_path.setdefault(finding.path, set()).add(finding.repair)
    editor = _FileEditor(folder.absolute(), "repair")
    repaired, failed = [], []
    for number, (path, repairs) in enumerate(by_path.items(), start=1):
        try:
            if path in (seen or {}) and read_state(path) != (seen or {})[path]:
                raise DataError("has changed since the check. Check the images again.")
            editor.repair(path.absolute(), repairs, words.strip(), (encodings or {}).get(path, ""))
            repaired.append(path)
        except (LoraTrainError, OSError) as error:
            failed.append((path, f"{path.name}: {without_name(str(error) or repr(error), str(path))}"))
        if on_progress:
            on_progress(number, len(by_path))
        if is_stopped():
            break
    remaining = len(by_path) - len(repaired) - len(failed)
    return RepairResult(tuple(repaired), tuple(failed), editor.commit(), remaining)


def write_replacements(folder: Path, contents: Mapping[Path, tuple[Path, bytes]], kind: str) -> Path | None:
    """The record after replacing files by (path, bytes), all or none; the originals are kept as in `write_repairs`.

    DataError or OutputError, with nothing changed, if one cannot be written.
    """
    editor = _FileEditor(folder.absolute(), kind)
    editor.replace_all([(path.absolute(), content, new.absolute()) for path, (new, content) in contents.items()])
    return editor.commit()


def write_replacements_one_by_one(
    folder: Path, contents: Iterable[tuple[Path, tuple[Path, bytes]]], kind: str
) -> RepairResult:
    """Like `write_replacements` for files that are made one after the other; a failure leaves that file unchanged."""
    editor = _FileEditor(folder.absolute(), kind)
    repaired, failed = [], []
    for path, (new_path, content) in contents:
        try:
            editor.replace(path.absolute(), content, new_path.absolute())
            repaired.append(path)
        except (LoraTrainError, OSError) as error:
            failed.append((path, f"{path.name}: {error}"))
    return RepairResult(tuple(repaired), tuple(failed), editor.commit())


def edit_image(path: Path, edit: Callable[[Image.Image], Image.Image]) -> tuple[Path, bytes]:
    """(path, content) of the upright image after `edit`, in its own format if possible, else as PNG.

    Transparency is kept. DataError if the file does not decode.
    """
    content = read_bytes(path)
    with decoding(path), open_image(io.BytesIO(content)) as opened:
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


def list_undos(folder: Path, kinds: Collection[str] = ()) -> list[Path]:
    """The records of the changes of a data folder's files, latest first, for `write_undo`."""
    return list_records(originals_folder(folder.absolute()), kinds)


def write_undo(record: Path) -> int:
    """The number of files restored from a record, which is then deleted; errors as for `journal.undo`.

    Files written by the repair are removed; those changed since (edited, cropped) are moved to the originals instead.
    """
    return undo(record, "set aside").restored


class _FileEditor:
    """Changes files, keeps their originals and records them for Undo."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._originals = originals_folder(folder)
        self._journal = Journal(self._originals, folder, kind)

    def repair(self, path: Path, repairs: set[Repair], words: str, encoding: str) -> None:
        """Apply all repairs of one file."""
        if "rename" in repairs:
            self._journal.rename_folder(path, _free_folder(path.with_name(name_without_date(path.name))))
            return
        if "set aside" in repairs:
            self._journal.apply([self._edit(file, None) for file in (path, *_companions(path))])
            return
        done = [repair for repair in _ORDER if repair in repairs]
        if done == ["write caption"]:
            self.replace(_caption_file(path), f"{words}\n".encode())
        elif done == ["to UTF-8"]:
            if not encoding:
                raise DataError("choose its encoding first, so that no guess is written.")
            self.replace(path, decode_as(read_bytes(path), encoding).encode())
        else:
            new_path, content = _repair_image(path, done)
            self.replace(path, content, new_path)
            if "write caption" in repairs:
                self.replace(_caption_file(path), f"{words}\n".encode())

    def commit(self) -> Path | None:
        """The record, None if nothing was changed."""
        return self._journal.commit()

    def replace(self, path: Path, content: bytes, new_path: Path | None = None) -> None:
        """Keep the file in the originals and write the content in its place or to `new_path`, which must be free."""
        self.replace_all([(path, content, new_path or path)])

    def replace_all(self, contents: Sequence[tuple[Path, bytes, Path]]) -> None:
        """`replace` several files, all or none: (path, content, new path)."""
        edits = []
        for path, content, target in contents:
            if target != path:
                if target.exists():
                    raise DataError(f"{target.name} exists already; rename one of the two.")
                edits += [FileEdit(target, content), self._edit(path, None)]
            else:
                edits.append(self._edit(path, content))
        self._journal.apply(edits)

    def _edit(self, path: Path, content: bytes | None) -> FileEdit:
        return FileEdit(path, content, free_path(self._originals / path.relative_to(self._folder)))


def _free_folder(folder: Path) -> Path:
    """The folder, or one with the same words where none exists yet: underscores at the end mean nothing."""
    while folder.exists():
        folder = folder.with_name(f"{folder.name}_")
    return folder


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
    with decoding(path), open_image(io.BytesIO(content)) as opened:
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
