"""Whole words in texts."""

from __future__ import annotations

import re
from functools import reduce


def has_word(text: str, word: str) -> bool:
    """Whether `text` contains `word` as a whole word, ignoring case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def replace_word(text: str, word: str, by: str) -> str:
    """`text` with `by` ("" for nothing) in the place of a whole word, ignoring case, and tidied: `a,  , b` → `a, b`."""
    replaced = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _: by, text, flags=re.IGNORECASE)
    return ", ".join(filter(None, (" ".join(part.split()) for part in replaced.split(","))))


def replace_trigger(text: str, trigger: str, word: str) -> str:
    """`text` with `word` in the place of the trigger; if that is several tags, of its first one."""
    first, *others = (tag.strip() for tag in trigger.split(","))
    return replace_word(reduce(lambda left, tag: replace_word(left, tag, ""), filter(None, others), text), first, word)


def with_class_word(text: str, trigger: str, class_word: str) -> str:
    """`text` with the class word in the place of the trigger; without the trigger if it has the class word already."""
    without = replace_trigger(text, trigger, "")
    return without if not class_word or has_word(without, class_word) else replace_trigger(text, trigger, class_word)
