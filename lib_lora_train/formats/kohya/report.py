"""What happened to imported or exported settings, in lines for the user; terminal and page show the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from lib_lora_train.core.wording import as_sentence
from lib_lora_train.formats.kohya.import_state import (
    AT_DEFAULT,
    AT_DEFAULT_THERE,
    EMPTY,
    FACT,
    NO_EFFECT,
    NOT_NEEDED,
    ONLY_HERE,
    REPLACED,
    ZERO,
    IgnoredKey,
)

_MAX_LENGTH = 60
_TITLES = {
    AT_DEFAULT: "At kohya's default",
    AT_DEFAULT_THERE: "At its default",
    EMPTY: "Empty or off",
    ZERO: "0, which means off",
    FACT: "Describes that run",
    NOT_NEEDED: "Not needed here",
    ONLY_HERE: "Only this program has it, and training does not depend on it",
    NO_EFFECT: "No effect with these settings",
}


def describe_lost(ignored: Iterable[IgnoredKey]) -> tuple[str, ...]:
    """A sentence for every ignored key that would have changed something and is not in a warning."""
    lost = [_shortened(entry) for entry in ignored if not entry.is_harmless and entry.reason != REPLACED]
    return tuple(as_sentence(f"{entry.key}{entry.value} {entry.reason}") for entry in lost)


def describe_unneeded(ignored: Iterable[IgnoredKey]) -> tuple[str, ...]:
    """The ignored keys that change nothing, grouped by reason."""
    unneeded = [entry for entry in ignored if entry.is_harmless]
    groups = {title: [e.key for e in unneeded if e.reason.startswith(reason)] for reason, title in _TITLES.items()}
    return tuple(f"{title}: {', '.join(sorted(keys))}." for title, keys in groups.items() if keys)


def _shortened(entry: IgnoredKey) -> IgnoredKey:
    """The entry with its value as text, " = 3"; "" if it has none."""
    text = "" if entry.value is None else " ".join(str(entry.value).split())
    short = text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"
    return dataclasses.replace(entry, value=f" = {short}" if short else "")
