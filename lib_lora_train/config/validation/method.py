"""Validation of the method, and of what is trained with it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from lib_lora_train.config.method_catalog import METHOD_CATALOG
from lib_lora_train.config.optimizer_catalog import CUSTOM, OPTIMIZER_CATALOG
from lib_lora_train.config.problems import error_at, hint_at, unused, warning_at
from lib_lora_train.config.settings.method import METHODS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.image_sizes import SMALLEST_SD_PX
from lib_lora_train.core.wording import join_names

_LOW_RATE, _HIGH_RATE, USUAL_EMBEDDING_RATE = 5e-4, 5e-2, 5e-3
_MANY_VECTORS = 16
_EVERYDAY = frozenset({"a", "an", "and", "at", "by", "for", "in", "is", "it", "of", "on", "or", "the", "to", "with"})
_INSIDE = frozenset(" -_'.")  # the text encoder reads these by themselves, whatever stands around the word


def validate_method(config: TrainConfig) -> Iterator[Problem]:
    """What the method needs, and the settings of other methods that are set for nothing."""
    info = METHOD_CATALOG[config.method]
    others = join_names([name for name in METHODS if name != config.method])
    names = [name for name in info.unused if name != "continue_from"]
    yield from unused(config, names, f"with method {config.method}, only with {others}")
    if config.method == "textual_inversion":
        yield from _textual_inversion(config)


def _textual_inversion(config: TrainConfig) -> Iterator[Problem]:
    if config.continue_from:
        text = "continues LoRA files only. Leave it empty; a stopped run is continued with Resume."
        yield error_at("continue_from", text)
    if config.learning_rate == 0:
        yield error_at("learning_rate", "is 0, so nothing is learnt.")
    yield from _word(config)
    if config.embedding_vectors > _MANY_VECTORS:
        text = (
            f"{config.embedding_vectors} vectors take {config.embedding_vectors} of the prompt's 75 tokens and learn "
            "the images by heart. 1 to 8 are usual."
        )
        yield warning_at("embedding_vectors", text)
    if config.prior_preservation != "off":
        text = (
            f"{config.prior_preservation} costs two passes for nothing, since textual inversion leaves the model as it "
            "is, and prompts without the trigger cannot change. Turn it off."
        )
        yield Problem("warning", "prior_preservation", text, (("prior_preservation", "off"),))
    if not OPTIMIZER_CATALOG[config.optimizer].estimates_lr and config.optimizer != CUSTOM:
        yield from _rate(config)


def _word(config: TrainConfig) -> Iterator[Problem]:
    """One trigger word, the same in every folder."""
    own = [(place, one) for place, one in enumerate(config.concepts, start=1) if not one.is_regularisation]
    without = [place for place, one in own if not one.trigger.strip()]
    triggers = list(dict.fromkeys(one.trigger.strip() for _, one in own if one.trigger.strip()))
    if without:
        text = "is empty, but textual inversion trains the embedding of this word. Enter a word that means nothing yet."
        yield error_at(f"concepts[{without[0]}].trigger", text)
    if len(triggers) > 1:
        text = f"has {join_names(triggers)}, but textual inversion trains one word in a run. Train the others after it."
        yield error_at("concepts", text)
    for trigger in triggers[:1]:
        place = next(place for place, one in own if one.trigger.strip())
        yield from _spelling(f"concepts[{place}].trigger", trigger)
    if triggers and not any(one.class_word.strip() for _, one in own) and not config.embedding_init_text.strip():
        text = "is empty, and so is the class word: the vectors start from *, which means nothing."
        yield hint_at("embedding_init_text", f"{text} Enter a word near to the concept.")


def _spelling(where: str, trigger: str) -> Iterator[Problem]:
    """One word, which the text encoder reads as the same tokens before a comma, in brackets and by itself."""
    if "," in trigger:
        yield error_at(where, "is several tags, but textual inversion trains one word. Enter a single one.")
    elif not _is_plain(trigger):
        text = (
            f"“{trigger}” would not be found in the captions, since the text encoder joins a symbol with the comma "
            "or bracket beside it. Enter a word of letters and digits, with - or _ only between them."
        )
        yield error_at(where, text)
    elif trigger.lower() in _EVERYDAY or (len(trigger) == 1 and trigger.isascii()):
        text = f"“{trigger}” is an everyday word, and every caption or prompt that has it gets the embedding."
        yield warning_at(where, f"{text} Enter a word that means nothing yet.")


def _is_plain(word: str) -> bool:
    """Whether a word begins and ends in a letter or digit, and has no brackets or other such symbols inside."""
    letters = unicodedata.normalize("NFC", word)  # as CLIP's tokenizer
    kinds = [" " if letter in _INSIDE else unicodedata.category(letter)[0] for letter in letters]
    return set(kinds) <= set(" LMN") and kinds[0] in "LN" and kinds[-1] in "LN"


def _rate(config: TrainConfig) -> Iterator[Problem]:
    rate, usual = config.learning_rate, f"{USUAL_EMBEDDING_RATE:g} is usual for textual inversion."
    if 0 < rate < _LOW_RATE:
        yield warning_at("learning_rate", f"{rate:g} hardly moves an embedding. {usual}")
    if rate > _HIGH_RATE and config.resolution >= SMALLEST_SD_PX:
        yield warning_at("learning_rate", f"{rate:g} throws the vectors far from all words the model knows. {usual}")
