"""A list of known tags that the user supplies, for completing what is typed.

The format is the one of webuis' tag-completion extensions: CSV without a header, `tag,category,count,"alias,alias"`.
"""

from __future__ import annotations

import csv
import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.errors import DataError

_AFTER_ALL = chr(0x10FFFF)


@dataclass(frozen=True)
class KnownTag:
    """A tag as it is written in the list, and how many images have it."""

    name: str
    count: int
    category: str = ""


@dataclass(frozen=True)
class Completion:
    """A tag that fits what was typed; `alias` is the other name that fits, "" where the tag's own one does."""

    tag: KnownTag
    alias: str = ""


class TagList:
    """Tags by how they begin: names and aliases in order, of which a few are picked by their tags' counts."""

    def __init__(self, tags: Iterable[tuple[KnownTag, Iterable[str]]]) -> None:
        """`tags`: each with its aliases."""
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
        """How many other names the tags have."""
        return len(self._keys) - len(self._tags)

    def complete_prefix(self, typed: str, limit: int) -> list[Completion]:
        """The most frequent tags whose name or alias begins so, each once; letter case and underscores are alike."""
        start = normalise_tag(typed)
        if not start:
            return []
        low, high = bisect_left(self._keys, start), bisect_left(self._keys, start + _AFTER_ALL)
        aliases: dict[int, str] = {}
        for number, alias in self._entries[low:high]:
            aliases[number] = alias if aliases.get(number, alias) else ""  # its own name says more than an alias
        best = heapq.nsmallest(limit, aliases, key=lambda number: (-self._tags[number].count, number))
        return [Completion(self._tags[number], aliases[number]) for number in best]


def normalise_tag(name: str) -> str:
    """`Long_Hair` and `long hair` are the same tag."""
    return name.strip().lower().replace("_", " ")


def load_tag_list(file: Path) -> TagList:
    """The list in this file; DataError when it cannot be read or holds no tags."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            found = TagList(_rows(csv.reader(lines)))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file} cannot be read as a list of tags: {reason}.") from error
    if not len(found):
        raise DataError(f'{file} holds no tags. It should have lines such as: long_hair,0,4350743,"longhair".')
    return found


def _rows(lines: Iterable[list[str]]) -> Iterator[tuple[KnownTag, list[str]]]:
    """Lines may end early: a plain list of tags will do. A line whose count is no number is a header."""
    for line in lines:
        name, category, count, aliases, *_ = (*(cell.strip() for cell in line), "", "", "", "")
        if name and (not count or count.isdigit()):
            yield KnownTag(name, int(count or 0), category), [a.strip() for a in aliases.split(",") if a.strip()]
