"""Sample prompts made from the trigger, the class word and the captions, so that every run has samples and a grid."""

from __future__ import annotations

from collections.abc import Iterator

from lib_lora_train.config.sample_prompts import prompt_lines, split_options
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.dataset.captions import has_word, put_trigger_first
from lib_lora_train.dataset.scan import Dataset

_MAX_PROMPTS = 4
_CAPTIONS_PER_CONCEPT = 2


def suggest_prompts(config: TrainConfig, dataset: Dataset | None = None) -> tuple[str, ...]:
    """Prompts to add to those of the config: each concept by its words and in captions, then without its trigger.

    The last ones show whether the concept also appears unprompted. Without a dataset, only triggers and class words
    are used; () if there are none.
    """
    learnt = [concept for concept in config.concepts if not concept.is_regularisation]
    named = [", ".join(filter(None, (concept.trigger.strip(), concept.class_word.strip()))) for concept in learnt]
    captions = [text for concept in learnt for text in _captions(config, concept, dataset)]
    without = [concept.class_word.strip() for concept in learnt if concept.trigger.strip()]
    given = set(prompt_lines(config.sample_prompts))
    found = [prompt for prompt in dict.fromkeys(map(_as_prompt, (*named, *captions, *without))) if prompt]
    return tuple(prompt for prompt in found if prompt not in given)[:_MAX_PROMPTS]


def _captions(config: TrainConfig, concept: Concept, dataset: Dataset | None) -> Iterator[str]:
    """Captions of the first and of a middle image of a concept, with its trigger."""
    if dataset is None:
        return
    texts = [item.caption for item in dataset.items if dataset.concepts[item.concept].settings == concept]
    texts = list(dict.fromkeys(filter(None, texts)))
    for text in texts[:: max(1, (len(texts) + 1) // _CAPTIONS_PER_CONCEPT)][:_CAPTIONS_PER_CONCEPT]:
        separator = config.keep_tokens_separator
        plain = text.replace(separator, ", ") if separator else text
        needs_trigger = concept.trigger and not has_word(plain, concept.trigger)
        yield put_trigger_first(plain, concept.trigger) if needs_trigger else plain


def _as_prompt(text: str) -> str:
    """The text as one prompt line: without options, and never a comment."""
    return " ".join(split_options(text)[0].split()).lstrip("# ").strip(", ")
