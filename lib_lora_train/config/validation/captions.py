"""Judgement of how captions are read and varied; `validate` collects all."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem

_HIGH_DROPOUT = 0.3
_FEW_EPOCHS = 3
_CHUNK = 75


def validate_captions(config: TrainConfig) -> Iterator[Problem]:
    """Every finding about captions."""
    yield from _files(config)
    yield from _order(config)
    yield from _dropout(config)
    yield from _dropped_trigger(config)
    if config.max_token_length % _CHUNK:
        text = f"{config.max_token_length} is not a multiple of {_CHUNK}, the tokens of a chunk. Use 75, 150 or 225."
        yield Problem("error", "max_token_length", text)


def _triggers(config: TrainConfig) -> list[str]:
    return [concept.trigger for concept in config.concepts if concept.trigger and not concept.is_regularisation]


def _files(config: TrainConfig) -> Iterator[Problem]:
    extension = config.caption_extension
    if not extension.strip(".") or re.search(r"[\\/*?\s]", extension):
        text = f"{extension!r} is not a file ending. Write one such as .txt."
        yield Problem("error", "caption_extension", text)
    separator = config.keep_tokens_separator
    if separator and (separator in ", {}()[]" or re.fullmatch(r"\w+", separator)):
        text = f"{separator!r} stands in ordinary captions too and would part them. ||| is usual."
        yield Problem("warning", "keep_tokens_separator", text)
    if config.caption_prefix and config.caption_prefix in _triggers(config):
        text = "is the trigger, which is put first anyway: it would stand there twice. Leave one of them out."
        yield Problem("warning", "caption_prefix", text)


def _order(config: TrainConfig) -> Iterator[Problem]:
    varies = any(c.own_shuffle == "on" or c.own_tag_dropout for c in config.concepts)
    if config.keep_tokens > 1 and not config.shuffle_captions and not config.tag_dropout and not varies:
        text = "has no effect while shuffle_captions and tag_dropout are off: tags stay where they are."
        yield Problem("hint", "keep_tokens", text)
    if config.shuffle_captions and not config.keep_tokens and not any(c.trigger for c in config.concepts):
        text = "is 0 and there is no trigger: no tag keeps the first place. Keep 1 if the first one names the concept."
        yield Problem("hint", "keep_tokens", text)


def _dropout(config: TrainConfig) -> Iterator[Problem]:
    every = config.caption_dropout_every_n_epochs
    if config.caption_dropout == 1 or every == 1:
        name = "caption_dropout" if config.caption_dropout == 1 else "caption_dropout_every_n_epochs"
        yield Problem("warning", name, "is 1: no caption is ever seen. 0 is off; a dropout of 0.05 to 0.1 is usual.")
    elif config.caption_dropout > _HIGH_DROPOUT:
        text = f"{config.caption_dropout:g} hides many captions. 0.05 to 0.1 is usual."
        yield Problem("warning", "caption_dropout", text)
    elif 1 < every <= _FEW_EPOCHS:
        text = f"{every} hides a large part of all captions. 5 or more is usual, or caption_dropout instead."
        yield Problem("warning", "caption_dropout_every_n_epochs", text)
    if every > config.epochs:
        text = f"{every} is more than the {config.epochs} epochs: it never happens."
        yield Problem("hint", "caption_dropout_every_n_epochs", text)
    if config.tag_dropout > _HIGH_DROPOUT:
        text = f"{config.tag_dropout:g} leaves captions that do not tell what is seen. 0.05 to 0.2 is usual."
        yield Problem("warning", "tag_dropout", text)


def _dropped_trigger(config: TrainConfig) -> Iterator[Problem]:
    drops_captions = config.caption_dropout or config.caption_dropout_every_n_epochs
    drops = drops_captions or config.tag_dropout
    if config.drop_trigger and not drops:
        text = "has no effect while caption_dropout, caption_dropout_every_n_epochs and tag_dropout are 0."
        yield Problem("hint", "drop_trigger", text)
    elif config.drop_trigger and _triggers(config):
        text = "teaches the concept without its word as well: it then shows in images that did not ask for it."
        yield Problem("warning", "drop_trigger", text)
    elif drops_captions and _triggers(config):
        text = "leaves the trigger: it stands for all that a dropped caption said, which can blur it."
        yield Problem("hint", "caption_dropout", text)
