"""How tags are compared, and patterns of tags and paths in which * stands for any text."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

_ESCAPED_BRACKET = re.compile(r"\\([()\[\]])")


def unescape_tag(text: str) -> str:
    r"""The text with bare brackets: `saber \(fate\)` → `saber (fate)`."""
    return _ESCAPED_BRACKET.sub(r"\1", text)


def normalise_tag(name: str) -> str:
    """The tag in the form in which tags are compared: `Long_Hair` → `long hair`."""
    return name.strip().lower().replace("_", " ")


def make_tag_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """A function that returns whether a tag fits one of the patterns."""
    expressions = (wildcard_regex(tag_key(pattern)) for pattern in patterns if pattern.strip())
    any_of_them = re.compile("|".join(expressions) or r"(?!)")
    return lambda tag: any_of_them.match(tag_key(tag)) is not None


def make_path_matcher(pattern: str) -> Callable[[str], bool]:
    """A function that returns whether a path ends like a pattern of whole parts: `scan_*` or `10_zok/012.png`."""
    wanted = [re.compile(wildcard_regex(part)) for part in reversed(_parts(pattern))]

    def matches(path: str) -> bool:
        parts = _parts(path)[::-1]
        return len(wanted) <= len(parts) and all(want.match(part) for want, part in zip(wanted, parts, strict=False))

    return matches


def _parts(path: str) -> list[str]:
    return path.replace("\\", "/").lower().strip("/ ").split("/")


def wildcard_regex(pattern: str) -> str:
    """The regular expression of a pattern in which only * is a wildcard."""
    return fnmatch.translate(pattern.replace("[", "[[]").replace("?", "[?]"))


def tag_key(tag: str) -> str:
    r"""The tag as a pattern sees it: `Saber_\(Fate\)` and `saber (fate)` are the same."""
    return " ".join(normalise_tag(unescape_tag(tag)).split())
