"""Small pieces of text that messages of all rooms share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

_GIB = 2**30


def shorten_list(names: Sequence[str], limit: int) -> str:
    """The first `limit` names, separated by commas, and "…" if there are more."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def join_names(names: Sequence[str]) -> str:
    """`ia3, oft and boft`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def count(number: float, noun: str, plural: str = "") -> str:
    """1 → `1 image`, 2000 → `2,000 images`; `noun` may include the verb: `layer is damaged`, `layers are damaged`."""
    whole = int(number) if number == int(number) else number
    return f"{whole:,} {noun if number == 1 else plural or noun + 's'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The most similar of the known names, whatever its case; "" if none is similar."""
    by_lower = {other.lower(): other for other in reversed(list(known))}
    near = difflib.get_close_matches(name.lower(), by_lower, 1)
    return by_lower[near[0]] if near else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'cosine'?` for the nearest of the known names; "" if none is similar."""
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""


def as_sentence(text: str) -> str:
    """The text with a full stop, unless it has one or is a question."""
    return text if text.endswith((".", "?")) else f"{text}."


def without_name(sentence: str, where: str) -> str:
    """The sentence without the file or setting it begins with, for a place that names it already.

    `/a/b.png cannot be decoded.` at `b.png` or at `/a/b.png` → `cannot be decoded.`
    """
    name = re.split(r"[/\\]", where)[-1]
    if not name:
        return sentence
    folder = r"(?:(?:[A-Za-z]:)?[/\\][^\n]*?[/\\])?"
    match = re.match(rf"(?:{re.escape(where)}|{folder}{re.escape(name)})(?:: | )", sentence)
    return sentence[match.end() :] if match else sentence


_CONTINUES = re.compile(
    r"(-?\d[\d.,]*(e-?\d+)? )?(is|was|has|does|do|cannot|must|needs|uses|falls|takes|gives|contains|keeps|includes|"
    r"ignores|deletes|differs|mirrors|saves|adds|weights|stops|with|and) "
)
"""How a message begins that continues the name, or the name and its value, before it."""


def located(where: str, message: str) -> str:
    """The message after the name that it is about, with a colon between them unless it continues the name.

    `rank is high.`, `rank 300 is high.`, `rank: The file has none.`; the message alone if `where` is "".
    """
    joint = " " if _CONTINUES.match(message) else ": "
    return f"{where}{joint}{message}" if where else message


def number_text(value: float) -> str:
    """0.0001 → `1e-4`, 0.05 → `0.05`, 16.0 → `16`."""
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def fixed(value: float, digits: int = 2) -> str:
    """0.6249 → `0.62`; what rounds to zero has no sign: -0.001 → `0.00`."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def percent(share: float) -> str:
    """0.625 → `62%`; what rounds to zero has no sign: -0.001 → `0%`."""
    return f"{fixed(100 * share, 0)}%"


def size_text(size: float) -> str:
    """Bytes as text: `6.3 GB` (of 2³⁰ bytes, as GPU memory is sold), `340 MB`; at least `1 MB` if there are any."""
    if size >= 10 * _GIB:
        return f"{size / _GIB:.0f} GB"
    if size >= 0.95 * _GIB:
        return f"{size / _GIB:.1f} GB"
    return f"{max(1, round(size / 2**20)) if size > 0 else 0} MB"


def value_text(value: Any) -> str:
    """The value of a setting as a user would write it: `on`, `1e-4`, `a, b`; `empty` if it is not set."""
    if value is None or value in ("", ()):
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    return number_text(value) if isinstance(value, float) else str(value)
