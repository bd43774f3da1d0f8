"""Whole words in texts."""

from __future__ import annotations

import re


def has_word(text: str, word: str) -> bool:
    """Whether `text` contains `word` as a whole word, ignoring case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def replace_word(text: str, word: str, by: str) -> str:
    """`text` with `by` ("" for nothing) in the place of a whole word, ignoring case, and tidied: `a,  , b` → `a, b`."""
    replaced = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: by, text, flags=re.IGNORECASE)
    return ", ".join(filter(None, (" ".join(part.split()) for part in replaced.split(","))))
