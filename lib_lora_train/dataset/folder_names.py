"""File and folder names: natural sort order, kohya's repeats, and words for captions."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MAX_LISTED = 3


def natural_sort_key(name: str) -> tuple[tuple[int, str], ...]:
    """A sort key that puts `pic2` before `pic10` and ignores case; equal only for equal names."""
    parts = re.split(r"(\d+)", name.lower())
    return (*((int(part), part) if index % 2 else (0, part) for index, part in enumerate(parts)), (0, name))


def parse_kohya_name(folder_name: str) -> tuple[int, str] | None:
    """(repeats, words) of a folder named `N_words`: `10_zorp_cat` → (10, "zorp cat"). None for other names."""
    match = re.fullmatch(r"([0-9]+)_(.*)", folder_name)
    if not match or int(match[1]) < 1:
        return None
    return int(match[1]), folder_name_to_words(match[2])


def looks_like_date(number: int) -> bool:
    """Whether the number before a folder's words is rather a date than repeats: 2024, 202401, 240131, 20240131."""
    text = str(number)
    year = r"(?:19|20)\d\d"
    month, day = r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
    forms = (year, year + month, r"\d\d" + month + day, year + month + day, day + month + year)
    return any(re.fullmatch(form, text) for form in forms)


def name_without_date(folder_name: str) -> str:
    """`20240131_holiday`, `2024_01_31_holiday` → `1_holiday`: the same words with one repeat.

    "" if the number is no date, but repeats.
    """
    number, words = parse_kohya_name(folder_name) or (1, "")
    if not looks_like_date(number):
        return ""
    digits, rest = str(number), words.split()
    while rest and re.fullmatch(r"[0-9]{2}", rest[0]) and looks_like_date(int(digits + rest[0])):
        digits += rest.pop(0)
    return f"1_{'_'.join(rest) or 'images'}"


ORIGINALS_SUFFIX = "-originals"
"""What the dataset check appends to a folder's name for the originals of repaired files."""


def is_originals_folder(folder_name: str) -> bool:
    """Whether the folder holds originals of repaired images, which are not to be trained on."""
    return folder_name.endswith(ORIGINALS_SUFFIX)


def folder_name_to_words(folder_name: str) -> str:
    """A folder name as a caption: `grey_cat` → `grey cat`."""
    return " ".join(folder_name.replace("_", " ").split())


def file_name_to_words(stem: str) -> str:
    """A file name as a caption if it reads like one, else "".

    At least two words of letters, optionally followed by a number: `a red fox (2)` → `a red fox`; `IMG_2041` → "".
    """
    text = re.sub(r"[\s_-]*\(?\d*\)?$", "", stem)
    words = re.split(r"[\s_]+", text)
    is_caption = len(words) >= 2 and all(re.fullmatch(r"[^\W\d_][^\W\d_'’,-]*,?", word) for word in words)
    return " ".join(words) if is_caption else ""


def join_names(names: Sequence[str]) -> str:
    """The first three names and how many more there are: `a, b, c and 2 more`."""
    shown = ", ".join(names[:_MAX_LISTED])
    return shown if len(names) <= _MAX_LISTED else f"{shown} and {len(names) - _MAX_LISTED} more"
