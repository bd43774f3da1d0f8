"""Editing the captions of a folder: load, count, filter, edit with a backup, undo.

An edit is a function from text to text (see `caption_edits`). `plan_edit` returns what it would change, `write_plan`
writes that, and `write_undo` reverts it. Only files whose text changes are written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.tag_patterns import wildcard_regex
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.caption_encoding import decode_caption
from lib_lora_train.dataset.captions import (
    find_caption_file,
    index_by_extension,
    join_lines,
    list_caption_extensions,
    split_tags,
    strip_caption,
)
from lib_lora_train.dataset.folder_contents import FolderContents, scan_data_folders
from lib_lora_train.dataset.folder_names import natural_sort_key
from lib_lora_train.dataset.images import read_bytes
from lib_lora_train.dataset_tools.journal import FileEdit, IfChanged, Journal, undo
from lib_lora_train.dataset_tools.journal_records import content_hash, list_records

BACKUPS = ".caption-backups"
"""Sub-folder of the data folder with a record per edit; hidden, so that scans ignore it."""

_OLD_BACKUPS = (".caption-list_backups",)
_MAX_NAMED = 5
CountTokens = Callable[[Sequence[str]], Sequence[int]]


@dataclass(frozen=True)
class Caption:
    """The caption of one image. If there is no file yet, `text` is "" and `file` is where it would be written.

    `text` is only the most probable reading of a file that is not Unicode (`is_certain` is False).
    """

    image: Path
    file: Path
    text: str
    has_file: bool
    is_certain: bool = True

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

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The path of each image relative to the folder. Unlike its number, it stays when other images come and go."""
        return tuple(caption.image.relative_to(self.folder).as_posix() for caption in self.captions)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """The number of each caption by the name of its image."""
        return {name: number for number, name in enumerate(self.names)}


# --- reading ------------------------------------------------------------------------------------


def load_captions(folder: Path, extension: str = ".txt", among: Collection[Path] | None = None) -> CaptionSet:
    """The caption of every image, or of those in `among`, as `scan_dataset` finds it.

    DataError if the folder cannot be read.
    """
    captions = [one for contents in scan_data_folders(folder) for one in _load_folder(contents, extension, among)]
    captions.sort(key=lambda caption: natural_sort_key(caption.image.relative_to(folder).as_posix()))
    return CaptionSet(folder, tuple(captions))


def _load_folder(contents: FolderContents, extension: str, among: Collection[Path] | None) -> Iterator[Caption]:
    by_extension = index_by_extension(contents.other_files)
    for image in contents.images if among is None else [image for image in contents.images if image in among]:
        found = find_caption_file(image, extension, by_extension)
        file = found or image.with_name(image.stem + list_caption_extensions(extension)[0])
        text, is_certain = ("", True) if found is None else decode_caption(read_bytes(found))
        yield Caption(image, file, strip_caption(text), found is not None, is_certain)


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
    """What an edit would change; `considered` is the number of captions it was asked to edit.

    `left_out` are those of them whose reading is not certain. An edit of many would write guesses to disk.
    """

    captions: CaptionSet
    changes: tuple[Change, ...]
    considered: int
    left_out: tuple[int, ...] = ()

    @property
    def note(self) -> str:
        """A sentence that names the captions left out, "" without any."""
        return describe_left_out(self.captions, self.left_out)

    def __str__(self) -> str:
        touched = len(self.changes)
        new = sum(not self.captions.captions[change.number].has_file for change in self.changes)
        more = f", {count(new, 'of them is', 'of them are')} new" if new else ""
        first = f"{touched or 'None'} of {count(self.considered, 'caption')} would change{more}."
        return f"{first} {self.note}".strip()


def describe_left_out(captions: CaptionSet, numbers: Iterable[int]) -> str:
    """A sentence that names the captions left out because they are not Unicode, "" without any."""
    files = list(dict.fromkeys(captions.captions[number].file.name for number in numbers))
    if not files:
        return ""
    start = count(len(files), "caption is not UTF-8 and was", "captions are not UTF-8 and were")
    more = f" and {len(files) - _MAX_NAMED:,} more" if len(files) > _MAX_NAMED else ""
    choose = f"Choose {'its' if len(files) == 1 else 'their'} encoding with Check images in the Dataset panel."
    return f"{start} left out: {', '.join(files[:_MAX_NAMED])}{more}. {choose}"


def plan_edit(
    captions: CaptionSet, edit: Callable[[str], str], among: Iterable[int] | None = None, *, lines: str = "joined"
) -> EditPlan:
    """What `edit` would change in all captions, or in those numbered.

    `lines` is the setting `caption_lines`: a file is one caption if it is "joined", else each of its lines is one.
    """
    numbers = range(len(captions)) if among is None else list(among)
    left_out = tuple(number for number in numbers if not captions.captions[number].is_certain)
    changes = []
    for number in numbers:
        if not captions.captions[number].is_certain:
            continue
        before = captions.captions[number].text
        after = edit_lines(before, edit, lines)
        if after != before:
            changes.append(Change(number, before, after))
    return EditPlan(captions, tuple(changes), len(numbers), left_out)


def edit_lines(text: str, edit: Callable[[str], str], lines: str = "joined") -> str:
    """The text of a caption file after an edit of its caption, or of each line that is one; see `plan_edit`."""
    parts = [line for line in text.splitlines() if line.strip()]
    if lines == "joined" or len(parts) < 2:
        joined = parts[0] if len(parts) == 1 else join_lines(line.strip() for line in parts)
        after = edit(joined)
        return text if after == joined else after
    return "\n".join(edit(line) if line.strip() else line for line in text.splitlines())


def write_plan(plan: EditPlan, journal: Journal | None = None) -> tuple[CaptionSet, Path | None]:
    """(the captions afterwards, the record for `write_undo`): writes the changed captions as UTF-8.

    Plans that are written with the same journal are undone together. There is no record if nothing changes. DataError,
    before anything is written, if another program has changed a file; OutputError if a file cannot be written, after
    reverting those that were.
    """
    if not plan.changes:
        return plan.captions, None
    captions = plan.captions.captions
    journal = journal or caption_journal(plan.captions.folder)
    edits = {
        caption.file: FileEdit(caption.file, f"{change.after}\n".encode(), expected=_expected(caption))
        for change in plan.changes
        for caption in (captions[change.number],)
    }
    journal.apply(list(edits.values()))
    written = {captions[change.number].file: change.after for change in plan.changes}
    updated = tuple(_updated(caption, written) for caption in captions)
    return CaptionSet(plan.captions.folder, updated), journal.commit()


def caption_journal(folder: Path) -> Journal:
    """A new journal for an edit of the captions in a data folder."""
    return Journal(folder / BACKUPS, folder, "captions")


def _updated(caption: Caption, written: Mapping[Path, str]) -> Caption:
    """The caption after an edit; a.png and a.jpg share one file."""
    if caption.file not in written:
        return caption
    return Caption(caption.image, caption.file, written[caption.file], True)


def _expected(caption: Caption) -> str:
    """The hash of the file; DataError if its text has changed since it was loaded."""
    content = read_bytes(caption.file) if caption.file.exists() else None
    text = "" if content is None else strip_caption(decode_caption(content)[0])
    if text != caption.text:
        raise DataError(f"{caption.file} has changed since it was read. Open the folder again.")
    return content_hash(content)


def write_undo(backup: Path, if_changed: IfChanged = "refuse") -> int:
    """The number of files restored from the record of an edit, which is then deleted; errors as for `journal.undo`."""
    return undo(backup, if_changed).restored


def list_backups(folder: Path) -> list[Path]:
    """The records of a data folder's caption edits, latest first; those that a crash has torn are left out."""
    found = [record for name in (BACKUPS, *_OLD_BACKUPS) for record in list_records(folder / name)]
    return sorted(found, key=lambda record: record.name, reverse=True)
