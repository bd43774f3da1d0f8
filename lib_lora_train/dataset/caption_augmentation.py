"""How a caption varies from showing to showing, all of it a function of the draw's own generator.

In order: dropout; one of several lines; wildcards; then the tags behind the kept ones are shuffled and some left out;
prefix and suffix last. The order is sd-scripts', but that prefix and suffix are never shuffled nor dropped.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lib_lora_train.config.settings.concept import OWN_SHUFFLES
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.dataset.captions import split_tags, trigger_tags

AS_THE_RUN = OWN_SHUFFLES[0]
_NOTHING_OWN = Concept()
_WILDCARD = re.compile(r"\{([^{}]*)\}")
_DOUBLED = {"{{": "\ue000", "}}": "\ue001"}  # private-use letters stand in for literal braces meanwhile
_NO_BLANK_BEFORE = (",", ".", ";", ":", "!", "?")


@dataclass(frozen=True)
class CaptionRule:
    """How a caption is varied.

    `dropout` and `tag_dropout` are probabilities; `keep_tokens` is a number of tags at the front, `dropout_epochs` n
    for every nth epoch without captions. `lines` is joined, first or random.
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

    @property
    def is_fixed(self) -> bool:
        """True where every showing of an image has the same caption."""
        return not (
            self.shuffle
            or self.dropout
            or self.tag_dropout
            or self.dropout_epochs
            or self.has_wildcards
            or self.lines == "random"
        )


def make_caption_rule(config: TrainConfig, trigger: str, own: Concept = _NOTHING_OWN) -> CaptionRule:
    """The rule that a config describes for the captions of a concept, whose own settings count more."""
    return CaptionRule(
        shuffle=config.shuffle_captions if own.own_shuffle == AS_THE_RUN else own.own_shuffle == "on",
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
    )


def draw_caption(
    caption: str,
    rule: CaptionRule,
    generator: random.Random,
    *,
    lines: Sequence[str] = (),
    epoch: int = 1,
    variant: random.Random | None = None,
) -> str:
    """The caption as one showing of its image sees it: dropped, or else varied behind the kept tags.

    `lines` are the file's, where it has several; `variant` has all luck but that of dropout. Dropout leaves the trigger
    alone unless the rule says otherwise. The same numbers are drawn whatever the settings, so that one setting does not
    change the luck of another.
    """
    is_dropped = generator.random() < rule.dropout
    order, line, wildcard, tags = (random.Random((variant or generator).getrandbits(63)) for _ in range(4))
    if is_dropped or (rule.dropout_epochs and epoch % rule.dropout_epochs == 0):
        return "" if rule.drops_trigger else rule.trigger
    text = caption
    if lines and rule.lines != "joined":
        text = line.choice(lines) if rule.lines == "random" else lines[0]
    if rule.has_wildcards:
        text = resolve_wildcards(text, wildcard)
    return _between(rule.prefix, _varied(text, rule, order, tags), rule.suffix)


def resolve_wildcards(text: str, generator: random.Random) -> str:
    """The text with each {a|b|c} replaced by one of its choices; {{ and }} are braces that stay."""
    for doubled, letter in _DOUBLED.items():
        text = text.replace(doubled, letter)
    while _WILDCARD.search(text):  # from the inside out
        text = _WILDCARD.sub(lambda found: generator.choice(found[1].split("|")), text)
    return text.replace("\ue000", "{").replace("\ue001", "}")


def _varied(text: str, rule: CaptionRule, order: random.Random, luck: random.Random) -> str:
    """The text with its flexible tags shuffled and some left out; as it is where the rule wants neither."""
    is_parted = bool(rule.separator) and rule.separator in text
    if not (rule.shuffle or rule.tag_dropout or is_parted):
        return text
    front, flexible, end = _sections(text, rule, is_parted)
    if rule.drops_trigger:
        front = _without_trigger(front, rule, luck)
    stays = [luck.random() >= rule.tag_dropout for _ in flexible]
    numbers = list(range(len(flexible)))
    if rule.shuffle:
        order.shuffle(numbers)
    return ", ".join((*front, *(flexible[number] for number in numbers if stays[number]), *end))


def _sections(text: str, rule: CaptionRule, is_parted: bool) -> tuple[list[str], list[str], list[str]]:
    """(kept in front, flexible, kept at the end) tags; commas in brackets that weigh a group do not part it."""
    brackets = "{}()[]" if rule.is_weighted else "{}"
    if is_parted:
        front, flexible, *end = (split_tags(part, brackets) for part in text.split(rule.separator, 2))
        return front, flexible, end[0] if end else []
    tags = split_tags(text, brackets)
    kept = max(rule.keep_tokens, count_trigger_tags(tags, rule.trigger))
    return tags[:kept], tags[kept:], []


def _without_trigger(front: list[str], rule: CaptionRule, luck: random.Random) -> list[str]:
    """The kept tags, the trigger among them left out as often as any other tag."""
    length = count_trigger_tags(front, rule.trigger)
    is_dropped = luck.random() < rule.tag_dropout
    return front[length:] if is_dropped else front


def count_trigger_tags(tags: Sequence[str], trigger: str) -> int:
    """How many tags at the front belong to the trigger."""
    wanted = trigger_tags(trigger)
    if not wanted or not tags:
        return 0
    return len(wanted) if [tag.lower() for tag in tags[: len(wanted)]] == wanted else 1


def _between(prefix: str, text: str, suffix: str) -> str:
    """The three with blanks between them, but not before a mark."""
    joined = ""
    for part in (prefix, text, suffix):
        blank = " " if joined and part and not part.startswith(_NO_BLANK_BEFORE) else ""
        joined += blank + part
    return joined
