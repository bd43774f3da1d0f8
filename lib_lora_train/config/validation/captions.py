"""Validation of the caption settings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lib_lora_train.config.problems import HIGH_DROPOUT, TRIGGER_TWICE
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.encoding_limits import CHUNK_TOKENS, TOKEN_LIMITS_TEXT
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.tag_patterns import make_tag_matcher
from lib_lora_train.core.wording import count

_FEW_EPOCHS = 3


def validate_captions(config: TrainConfig) -> Iterator[Problem]:
    """All problems of the caption settings."""
    yield from _files(config)
    yield from _order(config)
    yield from _dropout(config)
    yield from _dropped_trigger(config)
    yield from _left_out_trigger(config)
    if config.max_token_length % CHUNK_TOKENS:
        text = f"{config.max_token_length} is not a multiple of {CHUNK_TOKENS}, the tokens per chunk."
        yield Problem("error", "max_token_length", f"{text} Use {TOKEN_LIMITS_TEXT}.")


def _files(config: TrainConfig) -> Iterator[Problem]:
    extension = config.caption_extension
    if not extension.strip(".") or re.search(r"[\\/*?\s]", extension):
        text = f"{extension!r} is not a file ending. Use one such as .txt."
        yield Problem("error", "caption_extension", text)
    separator = config.keep_tokens_separator
    if separator and (separator in ", {}()[]" or re.fullmatch(r"\w+", separator)):
        text = f"{separator!r} also occurs in ordinary captions and would split them. ||| is usual."
        yield Problem("warning", "keep_tokens_separator", text)
    if not config.caption_separator:
        yield Problem("error", "caption_separator", "is empty, so captions have no tags. A comma is usual.")
    if config.secondary_separator and config.secondary_separator == config.caption_separator:
        text = f"{config.secondary_separator!r} is caption_separator too, so it joins nothing. ;;; is usual."
        yield Problem("warning", "secondary_separator", text)
    if config.caption_prefix and config.caption_prefix in config.triggers:
        yield Problem("warning", "caption_prefix", TRIGGER_TWICE)


def _order(config: TrainConfig) -> Iterator[Problem]:
    varies = any(c.own_shuffle == "on" or c.own_tag_dropout for c in config.concepts)
    if config.keep_tokens > 1 and not config.shuffle_captions and not config.tag_dropout and not varies:
        text = "has no effect while shuffle_captions and tag_dropout are off: tags keep their order."
        yield Problem("hint", "keep_tokens", text)
    if config.shuffle_captions and not config.keep_tokens and not any(c.trigger for c in config.concepts):
        text = "is 0 and there is no trigger, so no tag stays first. Use 1 if the first tag names the concept."
        yield Problem("hint", "keep_tokens", text)


def _dropout(config: TrainConfig) -> Iterator[Problem]:
    every = config.caption_dropout_every_n_epochs
    if config.caption_dropout == 1 or every == 1:
        name = "caption_dropout" if config.caption_dropout == 1 else "caption_dropout_every_n_epochs"
        yield Problem("warning", name, "is 1: captions are never used. 0 is off; a dropout of 0.05 to 0.1 is usual.")
    elif config.caption_dropout > HIGH_DROPOUT:
        text = f"{config.caption_dropout:g} drops too many captions. 0.05 to 0.1 is usual."
        yield Problem("warning", "caption_dropout", text)
    elif 1 < every <= _FEW_EPOCHS:
        text = f"{every} drops too many captions. 5 or more is usual, or use caption_dropout instead."
        yield Problem("warning", "caption_dropout_every_n_epochs", text)
    if every > config.epochs:
        text = f"{every} is more than the {count(config.epochs, 'epoch')}, so it has no effect."
        yield Problem("hint", "caption_dropout_every_n_epochs", text)
    if config.tag_dropout > HIGH_DROPOUT:
        text = f"{config.tag_dropout:g} drops so many tags that captions no longer fit the image. 0.05 to 0.2 is usual."
        yield Problem("warning", "tag_dropout", text)


def _dropped_trigger(config: TrainConfig) -> Iterator[Problem]:
    drops_captions = config.caption_dropout or config.caption_dropout_every_n_epochs
    drops = drops_captions or config.tag_dropout
    if config.drop_trigger and not drops:
        text = "has no effect while caption_dropout, caption_dropout_every_n_epochs and tag_dropout are 0."
        yield Problem("hint", "drop_trigger", text)
    elif config.drop_trigger and config.triggers:
        text = "also teaches the concept without its trigger, so it leaks into images that do not use the trigger."
        yield Problem("warning", "drop_trigger", text)
    elif drops_captions and config.triggers:
        text = (
            "keeps the trigger, which then stands for everything in the dropped captions and can become less specific."
        )
        yield Problem("hint", "caption_dropout", text)


def _left_out_trigger(config: TrainConfig) -> Iterator[Problem]:
    for pattern in config.leave_out_tags:
        for trigger in config.triggers:
            if any(map(make_tag_matcher((pattern,)), trigger.split(","))):
                text = f"{pattern!r} fits the trigger {trigger!r}, which is in every caption. Remove it from this list."
                yield Problem("error", "leave_out_tags", text)
