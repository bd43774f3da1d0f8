"""Caption augmentation: how a caption varies from sample to sample, as a function of the sample's generator.

The order is that of sd-scripts: caption dropout, line choice, wildcards, shuffling and tag dropout of the tags after
the kept ones, prefix and suffix. Unlike there, prefix and suffix are never shuffled or dropped, unless
`affixes_as_tags` makes them part of the caption.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lib_lora_train.config.settings.concept import OWN_SHUFFLES
from lib_lora_train.config.train_config import Concept, TrainConfig, duration_in_steps
from lib_lora_train.core.words import has_word
from lib_lora_train.dataset.captions import split_tags, trigger_tags

AS_IN_RUN = OWN_SHUFFLES[0]
_NO_OVERRIDES = Concept()
_WILDCARD = re.compile(r"\{([^{}]*)\}")
_DOUBLED = {"{{": "\ue000", "}}": "\ue001"}  # private-use characters replace literal braces during the substitution
_NO_SPACE_BEFORE = (",", ".", ";", ":", "!", "?")


@dataclass(frozen=True)
class CaptionRule:
    """How captions are varied.

    `dropout` and `tag_dropout` are probabilities. `keep_tokens` is the number of tags kept at the front.
    `dropout_epochs` = n drops all captions in every nth epoch. `lines` is joined, first or random. `tag_separator` is
    between tags, `group_separator` between those that stay together. `warmup_steps` is the number of steps in which the
    flexible tags grow from `warmup_min` to all.
    """

    shuffle: bool = False
    keep_tokens: int = 0
    dropout: float = 0.0
    trigger: str = ""
    separator: str = "|||"
    tag_dropout: float = 0.0
    dropout_epochs: int = 0
    drops_trigger: bool = False
    prefix: str = ""
    suffix: str = ""
    has_wildcards: bool = False
    lines: str = "joined"
    is_weighted: bool = False
    affixes_as_tags: bool = False
    tag_separator: str = ","
    group_separator: str = ""
    warmup_steps: int = 0
    warmup_min: int = 1

    @property
    def is_fixed(self) -> bool:
        """Whether every sample of an image has the same caption."""
        return not (
            self.shuffle
            or self.dropout
            or self.tag_dropout
            or self.dropout_epochs
            or self.has_wildcards
            or self.lines == "random"
            or self.warmup_steps
        )


def make_caption_rule(
    config: TrainConfig, trigger: str, own: Concept = _NO_OVERRIDES, *, total_steps: int = 0
) -> CaptionRule:
    """The caption rule of a concept in a run of `total_steps`: its own settings where given, else the config's."""
    return CaptionRule(
        shuffle=config.shuffle_captions if own.own_shuffle == AS_IN_RUN else own.own_shuffle == "on",
        keep_tokens=config.keep_tokens if own.own_keep_tokens is None else own.own_keep_tokens,
        dropout=config.caption_dropout if own.own_caption_dropout is None else own.own_caption_dropout,
        trigger=trigger,
        separator=config.keep_tokens_separator,
        tag_dropout=config.tag_dropout if own.own_tag_dropout is None else own.own_tag_dropout,
        dropout_epochs=config.caption_dropout_every_n_epochs,
        drops_trigger=config.drop_trigger,
        prefix=own.own_prefix or config.caption_prefix,
        suffix=own.own_suffix or config.caption_suffix,
        has_wildcards=config.caption_wildcards,
        lines=config.caption_lines,
        is_weighted=config.weighted_captions,
        affixes_as_tags=config.affixes_as_tags,
        tag_separator=config.caption_separator,
        group_separator=config.secondary_separator,
        warmup_steps=duration_in_steps(config.token_warmup_steps, total_steps),
        warmup_min=config.token_warmup_min,
    )


def draw_caption(
    caption: str,
    rule: CaptionRule,
    generator: random.Random,
    *,
    lines: Sequence[str] = (),
    epoch: int = 1,
    step: int = 0,
    variant: random.Random | None = None,
) -> str:
    """The caption of one sample: dropped, or varied after the kept tags.

    `lines` are the lines of a caption file that has several. `step` counts finished optimiser steps. `variant` is the
    generator of everything but dropout. Dropout keeps the trigger word unless the rule has `drops_trigger`. The same
    numbers are drawn for all settings, so that changing one setting does not change the random draws of another.
    """
    is_dropped = generator.random() < rule.dropout
    order, line, wildcard, tags = (random.Random((variant or generator).getrandbits(63)) for _ in range(4))
    if is_dropped or (rule.dropout_epochs and epoch % rule.dropout_epochs == 0):
        return "" if rule.drops_trigger else rule.trigger
    text = caption
    if lines and rule.lines != "joined":
        text = line.choice(lines) if rule.lines == "random" else lines[0]
    if rule.affixes_as_tags:
        text = _join_with_spaces(rule.prefix, text, rule.suffix)
    if rule.has_wildcards:
        text = resolve_wildcards(text, wildcard)
    varied = _vary(text, rule, order, tags, step)
    if rule.group_separator:
        varied = varied.replace(rule.group_separator, rule.tag_separator)
    return varied if rule.affixes_as_tags else _join_with_spaces(rule.prefix, varied, rule.suffix)


def resolve_wildcards(text: str, generator: random.Random) -> str:
    """The text with each {a|b|c} replaced by one of its choices; {{ and }} become literal braces."""
    for doubled, letter in _DOUBLED.items():
        text = text.replace(doubled, letter)
    while _WILDCARD.search(text):  # innermost first
        text = _WILDCARD.sub(lambda found: generator.choice(found[1].split("|")), text)
    return text.replace("\ue000", "{").replace("\ue001", "}")


def _vary(text: str, rule: CaptionRule, order: random.Random, dropout: random.Random, step: int) -> str:
    """The text with its flexible tags shuffled and some dropped; unchanged if the rule does neither."""
    has_separator = bool(rule.separator) and rule.separator in text
    if not (rule.shuffle or rule.tag_dropout or rule.warmup_steps or has_separator):
        return text
    front, flexible, end = _split_sections(text, rule, has_separator)
    flexible = flexible[: warm_tag_count(len(flexible), rule, step)]
    if rule.drops_trigger and not rule.affixes_as_tags:
        front = _maybe_drop_trigger(front, rule, dropout)
    is_kept = [dropout.random() >= rule.tag_dropout for _ in flexible]
    numbers = list(range(len(flexible)))
    if rule.shuffle:
        order.shuffle(numbers)
    return ", ".join((*front, *(flexible[number] for number in numbers if is_kept[number]), *end))


def warm_tag_count(total: int, rule: CaptionRule, step: int) -> int:
    """How many of `total` flexible tags are used at `step`; it grows evenly, as in sd-scripts."""
    if not rule.warmup_steps or step >= rule.warmup_steps:
        return total
    return max(0, step * (total - rule.warmup_min) // rule.warmup_steps + rule.warmup_min)


def _split_sections(text: str, rule: CaptionRule, has_separator: bool) -> tuple[list[str], list[str], list[str]]:
    """(kept at the front, flexible, kept at the end) tags. Commas in the brackets of a weighted group do not split."""
    if has_separator:
        front, flexible, *end = (_split(part, rule) for part in text.split(rule.separator, 2))
        return front, flexible, end[0] if end else []
    tags = _split(text, rule)
    kept = max(rule.keep_tokens, _trigger_end(tags, rule))
    return tags[:kept], tags[kept:], []


def _split(text: str, rule: CaptionRule) -> list[str]:
    if rule.tag_separator != ",":
        return [part for part in map(str.strip, text.split(rule.tag_separator)) if part]
    return split_tags(text, "{}()[]" if rule.is_weighted else "{}")


def _trigger_end(tags: Sequence[str], rule: CaptionRule) -> int:
    """The number of tags up to the end of the trigger, which may follow a prefix."""
    if not rule.affixes_as_tags:
        return count_trigger_tags(tags, rule.trigger)
    found = (number for number, tag in enumerate(tags, start=1) if rule.trigger and has_word(tag, rule.trigger))
    return next(found, 0)


def _maybe_drop_trigger(front: list[str], rule: CaptionRule, dropout: random.Random) -> list[str]:
    """The kept tags; the trigger is dropped as often as any other tag."""
    length = count_trigger_tags(front, rule.trigger)
    is_dropped = dropout.random() < rule.tag_dropout
    return front[length:] if is_dropped else front


def count_trigger_tags(tags: Sequence[str], trigger: str) -> int:
    """How many tags at the front belong to the trigger word."""
    wanted = trigger_tags(trigger)
    if not wanted or not tags:
        return 0
    return len(wanted) if [tag.lower() for tag in tags[: len(wanted)]] == wanted else 1


def _join_with_spaces(prefix: str, text: str, suffix: str) -> str:
    """The three joined by spaces, without a space before punctuation."""
    joined = ""
    for part in (prefix, text, suffix):
        space = " " if joined and part and not part.startswith(_NO_SPACE_BEFORE) else ""
        joined += space + part
    return joined
