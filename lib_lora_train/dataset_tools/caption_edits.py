"""Edits of one caption: each function returns a function from text to text, for `caption_files.plan_edit`.

Tags are separated by commas and compared without case, since the text encoder does not see it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import regex

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.tag_patterns import unescape_tag
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.captions import split_tags

Edit = Callable[[str], str]

PATTERN_SECONDS = 2.0
"""How long the matching of one edit may take; some patterns take time exponential in the length of a caption."""
_MAX_PATTERN = 1000

_WORD = re.compile(r"[^\W_]{2}")  # two letters in a row; emoticons such as ^_^ and o_o have none
_BARE_BRACKET = re.compile(r"(?<!\\)([()\[\]])")


def add_tags(tags: Iterable[str], *, front: bool = False) -> Edit:
    """Adds the missing tags, at the end or at the front."""
    to_add = _unique_tags(tags)

    def edit(text: str) -> str:
        present = _lowered(split_tags(text))
        missing = [tag for tag in to_add if tag.lower() not in present]
        if not missing:
            return text
        return ", ".join((*missing, *split_tags(text)) if front else (*split_tags(text), *missing))

    return edit


def remove_tags(tags: Iterable[str]) -> Edit:
    """Removes the tags."""
    unwanted = _lowered(_unique_tags(tags))
    return _edit_tags(lambda tags: [tag for tag in tags if tag.lower() not in unwanted])


def replace_tag(old: str, new: str) -> Edit:
    """Replaces a tag with other tags (or none), without creating duplicates."""
    replaced, others = old.strip().lower(), _unique_tags([new])

    def edit(tags: list[str]) -> list[str]:
        if replaced not in _lowered(tags):
            return tags
        result: list[str] = []
        for tag in tags:
            result += others if tag.lower() == replaced else [tag]
        return _without_duplicates(result)

    return _edit_tags(edit)


def replace_pattern(
    pattern: str, replacement: str, *, ignore_case: bool = False, limit_seconds: float = PATTERN_SECONDS
) -> Edit:
    r"""Replaces the matches of a regular expression in the whole caption; \1 or \g<name> refers to a group.

    DataError if the pattern or the replacement is invalid; the edit raises it once all its matching together has taken
    `limit_seconds`.
    """
    compiled = _compile(pattern, replacement, ignore_case)
    remaining = [limit_seconds]

    def edit(text: str) -> str:
        began = time.monotonic()
        try:
            # `concurrent` lets other threads run while it matches: a training, the page's other requests
            return str(compiled.sub(replacement, text, timeout=max(remaining[0], 1e-3), concurrent=True))
        except TimeoutError as error:
            raise DataError(
                f"The pattern {pattern!r} takes longer than {count(limit_seconds, 'second')}, so nothing was "
                "changed. Avoid repetitions inside repetitions, or edit fewer captions at a time."
            ) from error
        finally:
            remaining[0] -= time.monotonic() - began

    return edit


def _compile(pattern: str, replacement: str, ignore_case: bool) -> Any:
    if len(pattern) > _MAX_PATTERN:
        raise DataError(f"The pattern has {count(len(pattern), 'character')}. Use at most {_MAX_PATTERN:,}.")
    flags = regex.IGNORECASE if ignore_case else 0
    try:
        compiled = regex.compile(pattern, flags)
        regex.compile(f"(?:{pattern})|", flags).sub(replacement, "", timeout=PATTERN_SECONDS)  # checks the groups
    except (regex.error, IndexError, TimeoutError, RecursionError, OverflowError) as error:
        raise DataError(
            f"The pattern {pattern!r} with the replacement {replacement!r} cannot be used: {error}."
        ) from error
    return compiled


def sort_tags(keep: int = 0) -> Edit:
    """Sorts the tags alphabetically, except the first `keep`."""
    return _edit_tags(lambda tags: tags[:keep] + sorted(tags[keep:], key=str.lower))


def move_to_front(tags: Iterable[str]) -> Edit:
    """Moves these tags to the front in this order, if present: the trigger word, then the class word."""
    wanted = [tag.lower() for tag in _unique_tags(tags)]

    def edit(tags: list[str]) -> list[str]:
        first = [tag for name in wanted for tag in tags if tag.lower() == name]
        return first + [tag for tag in tags if tag.lower() not in wanted]

    return _edit_tags(edit)


def remove_duplicates() -> Edit:
    """Keeps the first of duplicate tags."""
    return _edit_tags(_without_duplicates)


def underscores_to_spaces() -> Edit:
    """`long_hair` becomes `long hair`; emoticons such as ^_^ and tags such as score_9 are kept."""

    def edit(tag: str) -> str:
        is_kept = not _WORD.search(tag) or re.fullmatch(r"(score|rating)_\w+", tag.lower())
        return tag if is_kept else tag.replace("_", " ").strip()

    return _edit_tags(lambda tags: [edit(tag) for tag in tags])


def escape_brackets() -> Edit:
    r"""`saber (fate)` becomes `saber \(fate\)`, as the webui's prompts need it; escaped brackets are kept."""
    return lambda text: _BARE_BRACKET.sub(r"\\\1", text)


def unescape_brackets() -> Edit:
    r"""`saber \(fate\)` becomes `saber (fate)`."""
    return unescape_tag


def chain_edits(edits: Iterable[Edit]) -> Edit:
    """Several edits as one, so that they are undone together."""
    steps = tuple(edits)

    def edit(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return edit


def _edit_tags(change: Callable[[list[str]], list[str]]) -> Edit:
    """An edit of the list of tags; if the tags do not change, neither does the text."""

    def edit(text: str) -> str:
        before = split_tags(text)
        after = change(before)
        return text if after == before else ", ".join(after)

    return edit


def _unique_tags(texts: Iterable[str]) -> list[str]:
    """The tags of several texts, without duplicates."""
    return _without_duplicates([tag for text in texts for tag in split_tags(text)])


def _without_duplicates(tags: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.lower(), tag)
    return list(first.values())


def _lowered(tags: Iterable[str]) -> set[str]:
    return {tag.lower() for tag in tags}
