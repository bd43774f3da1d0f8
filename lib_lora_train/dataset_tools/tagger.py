"""Captions from taggers: what one says of an image, how much of it is kept, and what becomes of captions there are."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from lib_lora_train.dataset.captions import put_trigger_first, split_tags
from lib_lora_train.dataset_tools.caption_edits import escape_brackets, underscores_to_spaces, unescape_brackets
from lib_lora_train.dataset_tools.caption_files import CaptionSet, Change, EditPlan

Kind = Literal["general", "character", "rating"]
Existing = Literal["skip", "append", "replace"]
EXISTING: tuple[Existing, ...] = ("skip", "append", "replace")


@dataclass(frozen=True)
class ScoredTag:
    """A tag as the tagger calls it, and how sure it is, 0 to 1."""

    name: str
    score: float
    kind: Kind = "general"


@dataclass(frozen=True)
class TaggerResult:
    """What a tagger says of one image: tags, a sentence, or both."""

    tags: tuple[ScoredTag, ...] = ()
    sentence: str = ""


Tagger = Callable[[Image.Image], TaggerResult]
"""Looks at one image: RGB, upright, transparency on white, of any size."""


@dataclass(frozen=True)
class TagRule:
    """What of a description becomes the caption.

    A tag is kept from the threshold of its kind on; ratings never are. `exclude` compares whatever the letter case,
    blank or underscore, and * stands for any letters. `trigger` is put in front.
    """

    general_threshold: float = 0.35
    character_threshold: float = 0.85
    exclude: tuple[str, ...] = ()
    underscores_to_spaces: bool = True
    escape_brackets: bool = False
    trigger: str = ""


def make_caption(found: TaggerResult, rule: TagRule) -> str:
    """The caption: characters, then other tags, each from the surest down, then the sentence.

    "" where nothing is kept, whatever the trigger.
    """
    least = {"general": rule.general_threshold, "character": rule.character_threshold}
    kept = [tag for tag in found.tags if tag.kind in least and tag.score >= least[tag.kind]]
    kept.sort(key=lambda tag: (tag.kind != "character", -tag.score))
    is_excluded = _matcher(rule.exclude)
    names = (tag.name.replace(",", " ") for tag in kept)
    text = ", ".join(name for name in (*names, *split_tags(found.sentence)) if not is_excluded(name))
    if rule.underscores_to_spaces:
        text = underscores_to_spaces()(text)
    if rule.escape_brackets:
        text = escape_brackets()(text)
    return put_trigger_first(text, rule.trigger) if text else ""


def merge_captions(before: str, tagged: str, existing: Existing, trigger: str = "") -> str:
    """The caption file's text afterwards. An image of which nothing was said keeps what it has."""
    if not tagged or (before and existing == "skip"):
        return before
    if not before or existing == "replace":
        return tagged
    return "\n".join(_appended(line, tagged, trigger) for line in before.splitlines())


def _appended(line: str, tagged: str, trigger: str) -> str:
    """The line with the tags it lacks, its trigger in front."""
    present = {_plain(tag) for tag in split_tags(line)}
    missing = [tag for tag in split_tags(tagged) if _plain(tag) not in present]
    return put_trigger_first(", ".join((*split_tags(line), *missing)), trigger)


def numbers_to_tag(captions: CaptionSet, among: Iterable[int], existing: Existing) -> list[int]:
    """Those of the numbered captions whose images are to be looked at: with "skip", those without a caption."""
    return [number for number in among if existing != "skip" or not captions.captions[number].text]


def plan_tags(captions: CaptionSet, found: Mapping[Path, TaggerResult], rule: TagRule, existing: Existing) -> EditPlan:
    """What the descriptions, by image, would change; a.png and a.jpg share the caption of the first one described."""
    changes: dict[Path, Change] = {}
    for number, caption in enumerate(captions.captions):
        if caption.image in found and caption.file not in changes:
            tagged = make_caption(found[caption.image], rule)
            after = merge_captions(caption.text, tagged, existing, rule.trigger)
            if after != caption.text:
                changes[caption.file] = Change(number, caption.text, after)
    return EditPlan(captions, tuple(changes.values()), len(found))


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a tag is one of the patterns."""
    plain = (_plain(pattern).replace("[", "[[]").replace("?", "[?]") for pattern in patterns if pattern.strip())
    one_of_them = re.compile("|".join(fnmatch.translate(pattern) for pattern in plain) or r"(?!)")
    return lambda tag: one_of_them.match(_plain(tag)) is not None


def _plain(tag: str) -> str:
    r"""`Saber_\(Fate\)` and `saber (fate)` are the same tag."""
    return " ".join(unescape_brackets()(tag).lower().replace("_", " ").split())
