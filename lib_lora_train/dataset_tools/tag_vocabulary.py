"""A tag list supplied by the user, for completing tags while typing.

The format is that of the webui's tag-completion extensions: CSV without a header, `tag,category,count,"alias,alias"`.
"""

from __future__ import annotations

import csv
import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.tag_patterns import normalise_tag

_LAST_CHARACTER = chr(0x10FFFF)


@dataclass(frozen=True)
class KnownTag:
    """A tag as written in the list, and how many images have it."""

    name: str
    count: int
    category: str = ""


@dataclass(frozen=True)
class Completion:
    """A tag that matches the typed text; `alias` is the alias that matched, "" if the tag's own name did."""

    tag: KnownTag
    alias: str = ""


class TagList:
    """Tags for completion by prefix: names and aliases, sorted; the most frequent matches are returned."""

    def __init__(self, tags: Iterable[tuple[KnownTag, Iterable[str]]]) -> None:
        """`tags` are pairs of a tag and its aliases."""
        self._tags: list[KnownTag] = []
        names: list[tuple[str, int, str]] = []
        for tag, aliases in tags:
            number = len(self._tags)
            self._tags.append(tag)
            names.append((normalise_tag(tag.name), number, ""))
            names += ((normalise_tag(alias), number, alias) for alias in aliases)
        names.sort(key=lambda entry: entry[0])
        self._keys = [key for key, _, _ in names]
        self._entries = [(number, alias) for _, number, alias in names]

    def __len__(self) -> int:
        return len(self._tags)

    @property
    def alias_count(self) -> int:
        """How many aliases the tags have in total."""
        return len(self._keys) - len(self._tags)

    def complete_prefix(self, typed: str, limit: int) -> list[Completion]:
        """The most frequent tags whose name or alias starts with `typed`, each once; ignores case and underscores."""
        start = normalise_tag(typed)
        if not start:
            return []
        low, high = bisect_left(self._keys, start), bisect_left(self._keys, start + _LAST_CHARACTER)
        aliases: dict[int, str] = {}
        for number, alias in self._entries[low:high]:
            aliases[number] = alias if aliases.get(number, alias) else ""  # prefer the tag's own name to an alias
        best = heapq.nsmallest(limit, aliases, key=lambda number: (-self._tags[number].count, number))
        return [Completion(self._tags[number], aliases[number]) for number in best]


def load_tag_list(file: Path) -> TagList:
    """The tags in this file; DataError if it cannot be read or contains no tags."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            found = TagList(_rows(csv.reader(lines)))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file} cannot be read as a tag list: {reason}.") from error
    if not len(found):
        raise DataError(f'{file} contains no tags. It should have lines such as: long_hair,0,4350743,"longhair".')
    return found


def load_implications(tag_list: Path) -> dict[str, set[str]]:
    """Tag → the tags that it implies, from the files `*implication*.csv` beside a tag list; {} without any.

    Each line is `tag,implied tag`; in an export of a booru, the columns are called antecedent_name and consequent_name.
    DataError if a file cannot be read.
    """
    implied: dict[str, set[str]] = {}
    for file in sorted(tag_list.parent.glob("*implication*.csv")):
        try:
            with file.open(encoding="utf-8-sig", newline="") as lines:
                rows = list(csv.reader(lines))
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
        header = [cell.strip() for cell in rows[0]] if rows else []
        is_named = {"antecedent_name", "consequent_name"} <= set(header)
        first, second = (header.index(f"{one}_name") for one in ("antecedent", "consequent")) if is_named else (0, 1)
        for row in rows[is_named:]:
            if len(row) > max(first, second) and row[first].strip() and row[second].strip():
                implied.setdefault(normalise_tag(row[first]), set()).add(normalise_tag(row[second]))
    return implied


def _rows(lines: Iterable[list[str]]) -> Iterator[tuple[KnownTag, list[str]]]:
    """The tags with their aliases. Columns may be missing; a line whose count is not a number is a header."""
    for line in lines:
        name, category, count, aliases, *_ = (*(cell.strip() for cell in line), "", "", "", "")
        if name and (not count or count.isdigit()):
            yield KnownTag(name, int(count or 0), category), [a.strip() for a in aliases.split(",") if a.strip()]
