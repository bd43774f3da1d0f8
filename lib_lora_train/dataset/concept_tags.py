"""The tags of a run's captions, counted for each trigger word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.words import has_word
from lib_lora_train.dataset.captions import split_tags, trigger_tags
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.sample_captions import fixed_caption_for

_WEIGHTS = re.compile(r"(?<!\\)[()\[\]]")


@dataclass(frozen=True)
class ConceptTags:
    """What a trigger's captions consist of: its images, and those of each of their tags, as items of the dataset.

    The trigger is "" for images that have none; what stands for it in prompts is `name`, the class word if there is
    one. A part of a caption that contains the trigger, such as `zok on a chair`, is a tag too. The most frequent tag is
    the first one. `is_weighted`: brackets in captions set weights, as they do in prompts.
    """

    trigger: str
    name: str
    items: tuple[int, ...]
    tags: Mapping[str, tuple[int, ...]]
    is_weighted: bool = False

    def prompt(self, tag: str) -> str:
        """The trigger with a tag; the tag alone if it contains the trigger. Brackets of the tag are only brackets."""
        parts = [tag] if self.name and has_word(tag, self.name) else [self.name, tag]
        text = ", ".join(filter(None, parts))
        return text if self.is_weighted else _WEIGHTS.sub(lambda bracket: f"\\{bracket[0]}", text)


def concept_tags(plan: Plan, config: TrainConfig) -> tuple[ConceptTags, ...]:
    """The tags of every trigger, in the order of the concepts, without those for regularisation."""
    names: dict[str, str] = {}
    items: dict[str, list[int]] = {}
    for item, one in enumerate(plan.dataset.items):
        if not plan.is_regularisation(item):
            concept = plan.dataset.concepts[one.concept]
            trigger = ", ".join(split_tags(concept.trigger))
            names.setdefault(trigger, trigger or concept.settings.class_word.strip())
            items.setdefault(trigger, []).append(item)
    return tuple(_count(plan, config, trigger, names[trigger], found) for trigger, found in items.items())


def _count(plan: Plan, config: TrainConfig, trigger: str, name: str, items: list[int]) -> ConceptTags:
    spelt: dict[str, str] = {}
    found: dict[str, list[int]] = {}
    known = {*trigger_tags(trigger), *trigger_tags(name)}
    for item in items:
        tags = split_tags(fixed_caption_for(plan, item, config))
        for key, tag in {tag.lower(): tag for tag in tags if tag.lower() not in known}.items():
            spelt.setdefault(key, tag)
            found.setdefault(key, []).append(item)
    ordered = sorted(found, key=lambda key: -len(found[key]))  # those of the same number as they come in the captions
    return ConceptTags(
        trigger, name, tuple(items), {spelt[key]: tuple(found[key]) for key in ordered}, config.weighted_captions
    )
