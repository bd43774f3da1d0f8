"""The bulk edits of the Captions panel: what they are called, what they ask for, and what they do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools.caption_edits import (
    Edit,
    add_tags,
    drop_repeats,
    escape_brackets,
    in_turn,
    move_to_front,
    remove_tags,
    replace_pattern,
    replace_tag,
    sort_tags,
    underscores_to_blanks,
    unescape_brackets,
)


@dataclass(frozen=True)
class BulkEdit:
    """One kind of edit: `asks` names its text boxes, in the order of `make`'s arguments."""

    label: str
    help: str
    asks: tuple[str, ...]
    make: Callable[..., Edit]


def _needed(text: str, what: str) -> str:
    if not text.strip():
        raise DataError(f"Give {what}.")
    return text


def _sorted(kept: str) -> Edit:
    if kept.strip() and not kept.strip().isdigit():
        raise DataError(f"{kept!r} is not a number of tags to keep in front.")
    return sort_tags(int(kept.strip() or 1))


def _trigger_first(trigger: str, class_word: str) -> Edit:
    wanted = [_needed(trigger, "the trigger"), *([class_word] if class_word.strip() else [])]
    return in_turn([add_tags(wanted, front=True), move_to_front(wanted)])


BULK_EDITS: Mapping[str, BulkEdit] = {
    "add": BulkEdit(
        "Add tags at the end",
        "Adds those that are missing; several are separated by commas.",
        ("Tags",),
        lambda tags: add_tags([_needed(tags, "the tags to add")]),
    ),
    "add in front": BulkEdit(
        "Add tags in front",
        "Adds those that are missing before all others.",
        ("Tags",),
        lambda tags: add_tags([_needed(tags, "the tags to add")], front=True),
    ),
    "remove": BulkEdit(
        "Remove tags",
        "Takes the tags out, in any letter case.",
        ("Tags",),
        lambda tags: remove_tags([_needed(tags, "the tags to remove")]),
    ),
    "replace": BulkEdit(
        "Replace a tag",
        "Puts other tags, or none, in a tag's place.",
        ("Tag", "By"),
        lambda old, new: replace_tag(_needed(old, "the tag to replace"), new),
    ),
    "pattern": BulkEdit(
        "Replace by pattern",
        r"A regular expression over the whole caption; \1 is what its first group found.",
        ("Pattern", "By"),
        lambda pattern, by: replace_pattern(_needed(pattern, "a pattern"), by),
    ),
    "trigger first": BulkEdit(
        "Trigger first",
        "Puts the trigger first and the class word second, and adds them where they are missing.",
        ("Trigger", "Class word"),
        _trigger_first,
    ),
    "sort": BulkEdit(
        "Sort tags",
        "By letters, all but the first ones; 1 stay in front if nothing is given.",
        ("Keep in front",),
        _sorted,
    ),
    "de-duplicate": BulkEdit("Drop repeated tags", "Keeps the first of equal tags.", (), drop_repeats),
    "underscores": BulkEdit(
        "Underscores to spaces",
        "long_hair becomes long hair; faces like ^_^ and words like score_9 stay.",
        (),
        underscores_to_blanks,
    ),
    "escape": BulkEdit(
        "Escape brackets", r"saber (fate) becomes saber \(fate\), as prompts need it.", (), escape_brackets
    ),
    "unescape": BulkEdit("Unescape brackets", r"saber \(fate\) becomes saber (fate).", (), unescape_brackets),
}


def make_edit(name: str, given: Sequence[str]) -> Edit:
    """The edit of that name with these texts; DataError when one is missing or cannot be used."""
    kind = BULK_EDITS.get(name)
    if kind is None:
        raise DataError(f"There is no edit {name!r}. Reload the page.")
    texts = [*given, *("" for _ in kind.asks)][: len(kind.asks)]
    return kind.make(*texts)
