"""Whether a text contains a word."""

from __future__ import annotations

import re


def has_word(text: str, word: str) -> bool:
    """Whether `text` contains `word` as a whole word, ignoring case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
