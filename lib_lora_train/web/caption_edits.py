"""The bulk edits of the Captions panel: their labels, text boxes and effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools.caption_edits import (
    Edit,
    add_tags,
    chain_edits,
    escape_brackets,
    move_to_front,
    remove_duplicates,
    remove_tags,
    replace_pattern,
    replace_tag,
    sort_tags,
    underscores_to_spaces,
    unescape_brackets,
)


@dataclass(frozen=True)
class BulkEdit:
    """One kind of edit. `inputs` are the labels of its text boxes, in the order of the arguments of `make`."""

    label: str
    help: str
    inputs: tuple[str, ...]
    make: Callable[..., Edit]


def _required(text: str, what: str) -> str:
    if not text.strip():
        raise DataError(f"Enter {what}.")
    return text


def _sort(count: str) -> Edit:
    if count.strip() and not count.strip().isdigit():
        raise DataError(
            f"{count!r} is not a whole number. Enter how many tags to keep in front, or leave it empty for 1."
        )
    return sort_tags(int(count.strip() or 1))


def _trigger_first(trigger: str, class_word: str) -> Edit:
    wanted = [_required(trigger, "the trigger"), *([class_word] if class_word.strip() else [])]
    return chain_edits([add_tags(wanted, front=True), move_to_front(wanted)])


BULK_EDITS: Mapping[str, BulkEdit] = {
    "add": BulkEdit(
        "Add tags at the end",
        "Adds the tags that are missing. Separate several by commas.",
        ("Tags",),
        lambda tags: add_tags([_required(tags, "the tags to add")]),
    ),
    "add in front": BulkEdit(
        "Add tags in front",
        "Adds the tags that are missing before all others.",
        ("Tags",),
        lambda tags: add_tags([_required(tags, "the tags to add")], front=True),
    ),
    "remove": BulkEdit(
        "Remove tags",
        "Removes the tags, ignoring case.",
        ("Tags",),
        lambda tags: remove_tags([_required(tags, "the tags to remove")]),
    ),
    "replace": BulkEdit(
        "Replace a tag",
        "Replaces a tag with other tags, or with none.",
        ("Tag", "Replace with"),
        lambda old, new: replace_tag(_required(old, "the tag to replace"), new),
    ),
    "pattern": BulkEdit(
        "Replace by pattern",
        r"A regular expression for the whole caption; \1 is its first group.",
        ("Pattern", "Replace with"),
        lambda pattern, by: replace_pattern(_required(pattern, "a pattern"), by),
    ),
    "trigger first": BulkEdit(
        "Trigger first",
        "Moves the trigger to the front and the class word behind it; adds them if they are missing.",
        ("Trigger", "Class word"),
        _trigger_first,
    ),
    "sort": BulkEdit(
        "Sort tags",
        "Sorts alphabetically; the first tag stays in front by default.",
        ("Keep in front",),
        _sort,
    ),
    "de-duplicate": BulkEdit("Remove duplicate tags", "Keeps the first of each.", (), remove_duplicates),
    "underscores": BulkEdit(
        "Underscores to spaces",
        "long_hair becomes long hair; emoticons like ^_^ and words like score_9 stay.",
        (),
        underscores_to_spaces,
    ),
    "escape": BulkEdit(
        "Escape brackets", r"saber (fate) becomes saber \(fate\), as prompts need.", (), escape_brackets
    ),
    "unescape": BulkEdit("Unescape brackets", r"saber \(fate\) becomes saber (fate).", (), unescape_brackets),
}


def make_edit(name: str, entered: Sequence[str]) -> Edit:
    """The edit of that name with these texts; DataError if one is missing or invalid."""
    kind = BULK_EDITS.get(name)
    if kind is None:
        raise DataError(f"Unknown edit {name!r}. Reload the page.")
    texts = [*entered, *("" for _ in kind.inputs)][: len(kind.inputs)]
    return kind.make(*texts)
