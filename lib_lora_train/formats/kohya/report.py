"""What became of foreign settings, in lines for people; terminal and page show the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from lib_lora_train.formats.kohya.intake import AT_DEFAULT, EMPTY, FACT, NOT_NEEDED, ZERO, Ignored

_LONGEST = 60
_TITLES = {
    AT_DEFAULT: "At kohya's default",
    EMPTY: "Empty",
    ZERO: "0, which is off",
    FACT: "About that run",
    NOT_NEEDED: "Not needed here",
}


def lost_lines(ignored: Iterable[Ignored]) -> tuple[str, ...]:
    """A sentence for every key that would have changed something."""
    loud = [_shortened(entry) for entry in ignored if not entry.is_quiet]
    return tuple(f"{entry.key}{entry.value} {entry.reason}." for entry in loud)


def quiet_lines(ignored: Iterable[Ignored]) -> tuple[str, ...]:
    """The names of the keys that change nothing, by reason."""
    quiet = [entry for entry in ignored if entry.is_quiet]
    groups = {title: [e.key for e in quiet if e.reason.startswith(reason)] for reason, title in _TITLES.items()}
    return tuple(f"{title}: {', '.join(sorted(keys))}." for title, keys in groups.items() if keys)


def _shortened(entry: Ignored) -> Ignored:
    """The entry with its value as text, " = 3"; "" where it has none."""
    text = "" if entry.value is None else " ".join(str(entry.value).split())
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return dataclasses.replace(entry, value=f" = {short}" if short else "")
