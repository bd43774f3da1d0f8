"""Editing the captions of a folder: load, count, filter, edit with a backup, undo.

An edit is a function from text to text (see `caption_edits`). `plan_edit` returns what it would change, `write_plan`
writes that, and `write_undo` reverts it. Only files whose text changes are written.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import DataError, OutputError
from lib_lora_train.dataset.caption_encoding import decode_caption
from lib_lora_train.dataset.captions import (
    find_caption_file,
    index_by_extension,
    list_caption_extensions,
    split_tags,
    strip_caption,
)
from lib_lora_train.dataset.folder_contents import FolderContents, scan_data_folders
from lib_lora_train.dataset.folder_names import natural_sort_key
from lib_lora_train.dataset.images import read_bytes
from lib_lora_train.dataset_tools.tag_vocabulary import wildcard_regex

BACKUPS = ".caption-backups"
"""Sub-folder of the data folder with one file per edit; hidden, so that scans ignore it."""

_MAX_BACKUPS = 50
CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class Caption:
    """The caption of one image. If there is no file yet, `text` is "" and `file` is where it would be written."""

    image: Path
    file: Path
    text: str
    has_file: bool

    @property
    def tags(self) -> list[str]:
        """The tags of all lines."""
        return [tag for line in self.text.splitlines() for tag in split_tags(line)]


@dataclass(frozen=True)
class CaptionSet:
    """The captions of a data folder and its `N_words` sub-folders, in natural order."""

    folder: Path
    captions: tuple[Caption, ...]

    def __len__(self) -> int:
        return len(self.captions)


# --- reading ------------------------------------------------------------------------------------


def load_captions(folder: Path, extension: str = ".txt") -> CaptionSet:
    """The caption of every image, as `scan_dataset` finds it; DataError if the folder cannot be read."""
    captions = [caption for contents in scan_data_folders(folder) for caption in _load_folder(contents, extension)]
    captions.sort(key=lambda caption: natural_sort_key(caption.image.relative_to(folder).as_posix()))
    return CaptionSet(folder, tuple(captions))


def _load_folder(contents: FolderContents, extension: str) -> Iterator[Caption]:
    by_extension = index_by_extension(contents.other_files)
    for image in contents.images:
        found = find_caption_file(image, extension, by_extension)
        file = found or image.with_name(image.stem + list_caption_extensions(extension)[0])
        text = "" if found is None else strip_caption(decode_caption(read_bytes(found))[0])
        yield Caption(image, file, text, found is not None)


def count_tags(captions: CaptionSet, among: Collection[int] | None = None) -> list[tuple[str, int]]:
    """(tag, number of captions with it), most frequent first; `among` limits this to some caption numbers."""
    numbers = range(len(captions)) if among is None else among
    counts: Counter[str] = Counter()
    for number in numbers:
        counts.update(set(captions.captions[number].tags))
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0].lower()))


# --- filtering ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CaptionFilter:
    """Conditions on captions. Empty ones are ignored; a caption must meet all others.

    Tags are compared without case, and * matches any text. `text` is searched in the caption and the image's name.
    `tokens` is (minimum, maximum), for which `filter_captions` needs a function that counts tokens.
    """

    all_of: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()
    text: str = ""
    untagged: bool = False
    tokens: tuple[int, int] | None = None


def filter_captions(
    captions: CaptionSet, conditions: CaptionFilter, count_tokens: CountTokens | None = None
) -> tuple[int, ...]:
    """The numbers of the captions that pass the filter, in order."""
    checks = [
        *(_has_tag(tag) for tag in conditions.all_of),
        *(_none(_has_tag(tag)) for tag in conditions.none_of),
        *([_any(tuple(_has_tag(tag) for tag in conditions.any_of))] if conditions.any_of else []),
    ]
    text = conditions.text.lower()
    found = []
    for number, caption in enumerate(captions.captions):
        if conditions.untagged and caption.text:
            continue
        if text and text not in caption.text.lower() and text not in caption.image.name.lower():
            continue
        if checks:
            tags = [tag.lower() for tag in caption.tags]
            if not all(check(tags) for check in checks):
                continue
        found.append(number)
    return _filter_by_tokens(captions, found, conditions.tokens, count_tokens)


_Check = Callable[[Sequence[str]], bool]


def _has_tag(tag: str) -> _Check:
    name = tag.strip().lower()
    if "*" not in name:
        return lambda tags: name in tags
    pattern = re.compile(wildcard_regex(name))
    return lambda tags: any(pattern.match(tag) for tag in tags)


def _none(check: _Check) -> _Check:
    return lambda tags: not check(tags)


def _any(checks: Sequence[_Check]) -> _Check:
    return lambda tags: any(check(tags) for check in checks)


def _filter_by_tokens(
    captions: CaptionSet, numbers: Sequence[int], limits: tuple[int, int] | None, count_tokens: CountTokens | None
) -> tuple[int, ...]:
    if limits is None or not numbers:
        return tuple(numbers)
    if count_tokens is None:
        raise ValueError("filtering by tokens needs a function that counts them")
    counts = count_tokens([captions.captions[number].text for number in numbers])
    return tuple(n for n, count in zip(numbers, counts, strict=True) if limits[0] <= count <= limits[1])


# --- changing -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """The new content of one caption file."""

    number: int
    before: str
    after: str


@dataclass(frozen=True)
class EditPlan:
    """What an edit would change; `considered` is the number of captions it was applied to."""

    captions: CaptionSet
    changes: tuple[Change, ...]
    considered: int

    def __str__(self) -> str:
        touched = len(self.changes)
        new = sum(not self.captions.captions[change.number].has_file for change in self.changes)
        if not touched:
            return f"None of {self.considered} captions would change."
        more = f", {new} of them {'is' if new == 1 else 'are'} new" if new else ""
        return f"{touched} of {self.considered} captions would change{more}."


def plan_edit(captions: CaptionSet, edit: Callable[[str], str], among: Iterable[int] | None = None) -> EditPlan:
    """What `edit` would change in all captions, or in those numbered; each line of a file is edited separately."""
    numbers = range(len(captions)) if among is None else list(among)
    changes = []
    for number in numbers:
        before = captions.captions[number].text
        after = "\n".join(edit(line) for line in before.splitlines() or [""])
        if after != before:
            changes.append(Change(number, before, after))
    return EditPlan(captions, tuple(changes), len(numbers))


def write_plan(plan: EditPlan) -> tuple[CaptionSet, Path | None]:
    """(the captions afterwards, the backup for `write_undo`): writes the changed captions as UTF-8.

    There is no backup if nothing changes. DataError, before anything is written, if another program has changed a
    file; OutputError if a file cannot be written, after reverting those that were.
    """
    if not plan.changes:
        return plan.captions, None
    captions = plan.captions.captions
    entries: dict[Path, _Entry] = {}
    for change in plan.changes:
        caption = captions[change.number]
        entries[caption.file] = _Entry(caption.file, _current(caption), f"{change.after}\n".encode())
    backup = _write_backup(plan.captions.folder, list(entries.values()))
    _write_all([(entry.file, entry.after, entry.before) for entry in entries.values()])
    written = {captions[change.number].file: change.after for change in plan.changes}
    updated = tuple(_updated(caption, written) for caption in captions)
    return CaptionSet(plan.captions.folder, updated), backup


def _updated(caption: Caption, written: Mapping[Path, str]) -> Caption:
    """The caption after an edit; a.png and a.jpg share one file."""
    if caption.file not in written:
        return caption
    return Caption(caption.image, caption.file, written[caption.file], True)


def write_undo(backup: Path) -> int:
    """The number of files restored from a backup, which is then deleted.

    DataError, before anything is written, if a file has changed since or the backup cannot be read.
    """
    folder = backup.parent.parent
    try:
        entries = [_entry(folder, values) for values in json.loads(backup.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{backup} cannot be read; no caption was changed.") from error
    changed = [entry.file.name for entry in entries if _bytes(entry.file) != entry.after]
    if changed:
        raise DataError(f"{changed[0]} has changed since this edit, so nothing was undone. The backup is {backup}.")
    _write_all([(entry.file, entry.before, entry.after) for entry in entries])
    backup.unlink(missing_ok=True)
    return len(entries)


def list_backups(folder: Path) -> list[Path]:
    """The list_backups of a data folder's edits, latest first."""
    return sorted((folder / BACKUPS).glob("*.json"), reverse=True)


@dataclass(frozen=True)
class _Entry:
    """A caption file before (None: no file) and after an edit."""

    file: Path
    before: bytes | None
    after: bytes


def _current(caption: Caption) -> bytes | None:
    """The file's bytes; DataError if the text has changed since it was loaded."""
    content = _bytes(caption.file)
    text = "" if content is None else strip_caption(decode_caption(content)[0])
    if text != caption.text:
        raise DataError(f"{caption.file} has changed since it was read. Read the folder again.")
    return content


def _bytes(file: Path) -> bytes | None:
    return read_bytes(file) if file.exists() else None


def _write_backup(folder: Path, entries: Sequence[_Entry]) -> Path:
    values = [_values(folder, entry) for entry in entries]
    text = json.dumps(values, ensure_ascii=False, indent=1)
    number = hashlib.sha256(text.encode()).hexdigest()[:6]
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))
    backup = folder / BACKUPS / f"{moment}-{nanoseconds:09}-{number}.json"
    try:
        backup.parent.mkdir(exist_ok=True)
        backup.write_text(text, encoding="utf-8")
        for old in list_backups(folder)[_MAX_BACKUPS:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{backup} cannot be written: {error.strerror or error}. No caption was changed.") from error
    return backup


def _values(folder: Path, entry: _Entry) -> dict[str, str | None]:
    """The entry as JSON: text, or base64 for bytes that are not UTF-8."""
    before = {"before": None if entry.before is None else ""}
    if entry.before is not None:
        try:
            before = {"before": entry.before.decode("utf-8")}
        except UnicodeDecodeError:
            before = {"before_base64": base64.b64encode(entry.before).decode()}
    return {"file": entry.file.relative_to(folder).as_posix(), **before, "after": entry.after.decode("utf-8")}


def _entry(folder: Path, values: dict[str, str | None]) -> _Entry:
    encoded, text = values.get("before_base64"), values.get("before")
    before = base64.b64decode(encoded) if encoded else None if text is None else text.encode()
    return _Entry(folder / str(values["file"]), before, str(values["after"]).encode())


def _write_all(files: Sequence[tuple[Path, bytes | None, bytes | None]]) -> None:
    """Write (file, new content, old content), None for no file; if one fails, all are reverted."""
    for number, (file, new, _) in enumerate(files):
        try:
            _write(file, new)
        except OSError as error:
            for done, _, old in files[:number]:
                with contextlib.suppress(OSError):
                    _write(done, old)
            raise OutputError(
                f"{file} cannot be written: {error.strerror or error}. No caption was changed."
            ) from error


def _write(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
        return
    atomic_write.write_bytes(file, content, fsync=False)  # the backup is written already
