"""The caption under which each sample keeps the answer of the model without LoRA, for `prior_preservation`."""

from __future__ import annotations

from collections.abc import Sequence

from lib_lora_train.config.sample_prompts import mentions_trigger
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.seeding import random_for
from lib_lora_train.core.words import with_class_word
from lib_lora_train.dataset.plan import Plan


def preserves_prompts(config: TrainConfig) -> bool:
    """Whether the run has a second loss, on prompts that must not change."""
    return config.prior_preservation != "off" and config.prior_preservation_weight > 0


def preserved_caption(plan: Plan, caption: str, draw: int, config: TrainConfig) -> str:
    """The prompt to keep in place of a sample's `caption`; `draw` is the sample's number in the run.

    With `class` every trigger of the run is replaced, not only that of the sample's folder: a caption may mention two.
    """
    if config.prior_preservation == "empty":
        return ""
    if config.prior_preservation == "prompts":
        return random_for(config.seed, "preserved prompt", draw).choice(config.prior_preservation_prompts)
    return class_caption(plan, caption)


def preserved_captions(plan: Plan, captions: Sequence[str], config: TrainConfig) -> list[str]:
    """Every prompt that a run with these captions keeps, each once; [] if it keeps none."""
    if not preserves_prompts(config):
        return []
    if config.prior_preservation == "prompts":
        return list(dict.fromkeys(config.prior_preservation_prompts))
    return list(dict.fromkeys(preserved_caption(plan, caption, 0, config) for caption in captions))


def class_caption(plan: Plan, caption: str) -> str:
    """`caption` with the class words of the run's concepts in the place of their triggers."""
    for concept in plan.dataset.concepts:
        if concept.trigger and mentions_trigger(caption, [concept.trigger]):
            caption = with_class_word(caption, concept.trigger, concept.settings.class_word)
    return caption
