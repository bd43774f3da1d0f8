"""Captions from taggers: what a tagger returns, which tags are kept, and how existing captions are treated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from lib_lora_train.core.tag_patterns import make_tag_matcher, tag_key
from lib_lora_train.dataset.captions import put_trigger_first, split_tags
from lib_lora_train.dataset_tools.caption_edits import escape_brackets, underscores_to_spaces
from lib_lora_train.dataset_tools.caption_files import CaptionSet, Change, EditPlan, edit_lines
from lib_lora_train.dataset_tools.tagger_names import Existing

Kind = Literal["general", "character", "rating"]


@dataclass(frozen=True)
class ScoredTag:
    """A tag as the tagger names it, with its confidence, 0 to 1."""

    name: str
    score: float
    kind: Kind = "general"


@dataclass(frozen=True)
class TaggerResult:
    """What a tagger returns for one image: tags, a sentence, or both."""

    tags: tuple[ScoredTag, ...] = ()
    sentence: str = ""


Tagger = Callable[[Image.Image], TaggerResult]
"""Tags one image: RGB, upright, transparency on white, of any size."""


@dataclass(frozen=True)
class TagRule:
    """Which tags go into the caption, and how they are written.

    A tag is kept if its score reaches the threshold of its kind; ratings are never kept. `exclude` ignores case and
    underscores, and * matches any text. `trigger` is put first.
    """

    general_threshold: float = 0.35
    character_threshold: float = 0.85
    exclude: tuple[str, ...] = ()
    underscores_to_spaces: bool = True
    escape_brackets: bool = False
    trigger: str = ""


def make_caption(found: TaggerResult, rule: TagRule) -> str:
    """The caption: characters, then other tags, both by descending score, then the sentence.

    "" if no tag is kept, even if there is a trigger.
    """
    thresholds = {"general": rule.general_threshold, "character": rule.character_threshold}
    kept = [tag for tag in found.tags if tag.kind in thresholds and tag.score >= thresholds[tag.kind]]
    kept.sort(key=lambda tag: (tag.kind != "character", -tag.score))
    is_excluded = make_tag_matcher(rule.exclude)
    names = (tag.name.replace(",", " ") for tag in kept)
    text = ", ".join(name for name in (*names, *split_tags(found.sentence)) if not is_excluded(name))
    if rule.underscores_to_spaces:
        text = underscores_to_spaces()(text)
    if rule.escape_brackets:
        text = escape_brackets()(text)
    return put_trigger_first(text, rule.trigger) if text else ""


def merge_captions(before: str, tagged: str, existing: Existing, trigger: str = "", lines: str = "joined") -> str:
    """The new text of a caption file; unchanged if the tagger returned nothing. `lines` is as for `plan_edit`."""
    if not tagged or (before and existing == "skip"):
        return before
    if not before or existing == "replace":
        return tagged
    return edit_lines(before, lambda line: _append_tags(line, tagged, trigger), lines)


def _append_tags(line: str, tagged: str, trigger: str) -> str:
    """The line with the missing tags appended and the trigger first."""
    present = {tag_key(tag) for tag in split_tags(line)}
    missing = [tag for tag in split_tags(tagged) if tag_key(tag) not in present]
    return put_trigger_first(", ".join((*split_tags(line), *missing)), trigger)


def numbers_to_tag(captions: CaptionSet, among: Iterable[int], existing: Existing) -> list[int]:
    """The caption numbers whose images should be tagged; with "skip", only those without a caption."""
    return [number for number in among if existing != "skip" or not captions.captions[number].text]


def plan_tags(
    captions: CaptionSet,
    found: Mapping[Path, TaggerResult],
    rule: TagRule,
    existing: Existing,
    *,
    lines: str = "joined",
    done: Collection[Path] = (),
) -> EditPlan:
    """What the taggers' results would change; a.png and a.jpg share the caption of the first one tagged.

    `done` are the caption files of images that were tagged before.
    """
    changes: dict[Path, Change] = {}
    left_out = []
    for number, caption in enumerate(captions.captions):
        if caption.image not in found or caption.file in changes or caption.file in done:
            continue
        if not caption.is_certain:
            left_out.append(number)
            continue
        tagged = make_caption(found[caption.image], rule)
        after = merge_captions(caption.text, tagged, existing, rule.trigger, lines)
        if after != caption.text:
            changes[caption.file] = Change(number, caption.text, after)
    return EditPlan(captions, tuple(changes.values()), len(found), tuple(left_out))
