"""Edits of one caption: each function here gives a function from text to text, for `tags.plan_edit`.

Tags are what stands between commas. They compare whatever their letter case, as the text encoder does not see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.captions import split_tags

Edit = Callable[[str], str]

_WORD = re.compile(r"[^\W_]{2}")  # two letters in a row; ^_^, o_o and other faces have none
_BARE_BRACKET = re.compile(r"(?<!\\)([()\[\]])")
_ESCAPED_BRACKET = re.compile(r"\\([()\[\]])")


def add_tags(tags: Iterable[str], *, front: bool = False) -> Edit:
    """Adds the tags that are missing, at the end or in front."""
    wanted = _tags(tags)

    def edit(text: str) -> str:
        present = _lowered(split_tags(text))
        missing = [tag for tag in wanted if tag.lower() not in present]
        if not missing:
            return text
        return ", ".join((*missing, *split_tags(text)) if front else (*split_tags(text), *missing))

    return edit


def remove_tags(tags: Iterable[str]) -> Edit:
    """Takes the tags out."""
    unwanted = _lowered(_tags(tags))
    return _edited(lambda tags: [tag for tag in tags if tag.lower() not in unwanted])


def replace_tag(old: str, new: str) -> Edit:
    """Puts other tags (or none) in a tag's place; those that are there already are not repeated."""
    replaced, others = old.strip().lower(), _tags([new])

    def edit(tags: list[str]) -> list[str]:
        if replaced not in _lowered(tags):
            return tags
        result: list[str] = []
        for tag in tags:
            result += others if tag.lower() == replaced else [tag]
        return _without_repeats(result)

    return _edited(edit)


def replace_pattern(pattern: str, replacement: str, *, ignore_case: bool = False) -> Edit:
    r"""Replaces what a regular expression finds in the whole caption; \1 or \g<name> is what a group found.

    DataError if either is not valid.
    """
    try:
        compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        compiled.sub(replacement, "")
        re.compile(f"{pattern}|").sub(replacement, "")  # also shows a group that the pattern does not have
    except (re.error, IndexError) as error:
        raise DataError(f"The pattern {pattern!r} with {replacement!r} cannot be used: {error}.") from error
    return lambda text: compiled.sub(replacement, text)


def sort_tags(keep: int = 0) -> Edit:
    """Sorts the tags by letters, all but the first `keep`."""
    return _edited(lambda tags: tags[:keep] + sorted(tags[keep:], key=str.lower))


def move_to_front(tags: Iterable[str]) -> Edit:
    """Puts these tags first, in this order, where they are present: the trigger, then the class word."""
    wanted = [tag.lower() for tag in _tags(tags)]

    def edit(tags: list[str]) -> list[str]:
        first = [tag for name in wanted for tag in tags if tag.lower() == name]
        return first + [tag for tag in tags if tag.lower() not in wanted]

    return _edited(edit)


def remove_duplicates() -> Edit:
    """Keeps the first of equal tags."""
    return _edited(_without_repeats)


def underscores_to_spaces() -> Edit:
    """`long_hair` becomes `long hair`; emoticons such as ^_^ and words like score_9 stay."""

    def edit(tag: str) -> str:
        stays = not _WORD.search(tag) or re.fullmatch(r"(score|rating)_\w+", tag.lower())
        return tag if stays else tag.replace("_", " ").strip()

    return _edited(lambda tags: [edit(tag) for tag in tags])


def escape_brackets() -> Edit:
    r"""`saber (fate)` becomes `saber \(fate\)`, as prompts of the webui need it; what is escaped stays."""
    return lambda text: _BARE_BRACKET.sub(r"\\\1", text)


def unescape_brackets() -> Edit:
    r"""`saber \(fate\)` becomes `saber (fate)`."""
    return lambda text: _ESCAPED_BRACKET.sub(r"\1", text)


def chain_edits(edits: Iterable[Edit]) -> Edit:
    """Several edits as one, so that they are undone together."""
    all_of_them = tuple(edits)

    def edit(text: str) -> str:
        for one in all_of_them:
            text = one(text)
        return text

    return edit


def _edited(change: Callable[[list[str]], list[str]]) -> Edit:
    """An edit of the list of tags; a caption whose tags stay keeps its blanks and commas too."""

    def edit(text: str) -> str:
        before = split_tags(text)
        after = change(before)
        return text if after == before else ", ".join(after)

    return edit


def _tags(texts: Iterable[str]) -> list[str]:
    """The tags of several texts, once each."""
    return _without_repeats([tag for text in texts for tag in split_tags(text)])


def _without_repeats(tags: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.lower(), tag)
    return list(first.values())


def _lowered(tags: Iterable[str]) -> set[str]:
    return {tag.lower() for tag in tags}
