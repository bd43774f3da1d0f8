"""Small pieces of text that messages of all rooms share."""

from __future__ import annotations

from collections.abc import Sequence


def shorten_list(names: Sequence[str], limit: int) -> str:
    """The first `limit` names, separated by commas, and "…" if there are more."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def join_names(names: Sequence[str]) -> str:
    """`ia3, oft and boft`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def count(number: int, noun: str, plural: str = "") -> str:
    """1 → `1 image`, 2000 → `2,000 images`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
