"""What file and folder names say: their order, kohya's repeats, and words for captions."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SHOWN = 3


def natural_sort_key(name: str) -> tuple[tuple[int, str], ...]:
    """A sort key that puts `pic2` before `pic10`, whatever the letter case; equal only for equal names."""
    parts = re.split(r"(\d+)", name.lower())
    return (*((int(part), part) if index % 2 else (0, part) for index, part in enumerate(parts)), (0, name))


def parse_kohya_name(folder_name: str) -> tuple[int, str] | None:
    """(repeats, words) of a folder named `N_words`, None for any other name; `10_zorp_cat` → (10, "zorp cat")."""
    match = re.fullmatch(r"([0-9]+)_(.*)", folder_name)
    if not match or int(match[1]) < 1:
        return None
    return int(match[1]), folder_name_to_words(match[2])


def folder_name_to_words(folder_name: str) -> str:
    """A folder's name as a caption: `grey_cat` → `grey cat`."""
    return " ".join(folder_name.replace("_", " ").split())


def file_name_to_words(stem: str) -> str:
    """A file's name as a caption if people wrote it as one, else "".

    At least two words of letters, with at most a number behind: `a red fox (2)` → `a red fox`; `IMG_2041` → "".
    """
    text = re.sub(r"[\s_-]*\(?\d*\)?$", "", stem)
    words = re.split(r"[\s_]+", text)
    is_written = len(words) >= 2 and all(re.fullmatch(r"[^\W\d_][^\W\d_'’,-]*,?", word) for word in words)
    return " ".join(words) if is_written else ""


def join_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
