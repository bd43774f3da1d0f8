"""The caption of each sample, and which captions are worth encoding before the run.

Every draw is a function of the seed and the sample's number, so all captions of a run are known in advance.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.seeding import random_for
from lib_lora_train.dataset.augmentation import add_background_tag
from lib_lora_train.dataset.caption_augmentation import CaptionRule, draw_caption, make_caption_rule
from lib_lora_train.dataset.plan import Plan, epoch_steps
from lib_lora_train.dataset.preserved_captions import preserved_captions
from lib_lora_train.dataset.scan import Item

_MAX_PREDRAWN = 20_000  # samples; drawing their captions takes about two seconds


def caption_for_draw(plan: Plan, item: int, draw: int, config: TrainConfig) -> str:
    """The caption of one sample: `draw` is its number in the run."""
    source = _item_with_background(plan, plan.draw_view(config.seed, item, draw))
    rule = _rule(plan, item, config)
    generator = random_for(config.seed, "caption", draw)
    variant = None
    if config.caption_variants:
        number = random_for(config.seed, "caption variant", draw).randrange(config.caption_variants)
        variant = _variant_generator(config, item, number)
    epoch = draw // plan.samples_per_epoch + 1
    step = step_of_draw(plan, draw)
    return draw_caption(source.caption, rule, generator, lines=source.lines, epoch=epoch, step=step, variant=variant)


def step_of_draw(plan: Plan, draw: int) -> int:
    """The number of optimiser steps before the sample's; where batches are not full, that of its place in the epoch."""
    epochs, offset = divmod(draw, plan.samples_per_epoch)
    return epochs * plan.steps_per_epoch + offset * plan.steps_per_epoch // plan.samples_per_epoch


def fixed_caption_for(plan: Plan, item: int, config: TrainConfig) -> str:
    """The caption of an item's first view, the same every time: without dropout or shuffling.

    If lines are drawn at random, this uses the first; wildcards keep one choice for the whole run.
    """
    source = _item_with_background(plan, item)
    rule = _rule(plan, item, config)
    lines = "first" if rule.lines == "random" else rule.lines
    undropped = dataclasses.replace(rule, dropout=0.0, tag_dropout=0.0, dropout_epochs=0)
    fixed = dataclasses.replace(undropped, shuffle=False, warmup_steps=0, lines=lines)
    return draw_caption(source.caption, fixed, random_for(config.seed, "steady caption", item), lines=source.lines)


def captions_to_cache(plan: Plan, config: TrainConfig) -> list[str]:
    """The captions worth encoding before the run: all that it can use, if each is used at least twice on average.

    If shuffling or dropout gives nearly every sample a different caption, caching saves nothing: the list is empty,
    and each caption is encoded when it is needed.
    """
    samples = min(plan.samples_per_epoch * plan.epochs, plan.total_steps * plan.batch_size * plan.accumulation)
    rules = [make_caption_rule(config, "", concept.settings) for concept in plan.dataset.concepts]
    grows = bool(config.token_warmup_steps)
    has_many_forms = any(rule.shuffle or rule.tag_dropout or rule.has_wildcards for rule in rules)
    if not grows and (config.caption_variants or not has_many_forms):
        captions = dict.fromkeys(_possible_captions(plan, config))
    elif samples > _MAX_PREDRAWN:
        return []
    else:
        captions = dict.fromkeys(_drawn_captions(plan, config))
    if 2 * len(captions) > samples and not all(rule.is_fixed for rule in rules):
        return []
    return list(captions | dict.fromkeys(preserved_captions(plan, list(captions), config)))


def _drawn_captions(plan: Plan, config: TrainConfig) -> Iterator[str]:
    """The captions of all samples, in order."""
    for epoch in range(1, plan.epochs + 1):
        for batch in (batch for step in epoch_steps(plan, config.seed, epoch) for batch in step):
            for item, draw in zip(batch.items, batch.draws, strict=True):
                yield caption_for_draw(plan, item, draw, config)


def _possible_captions(plan: Plan, config: TrainConfig) -> Iterator[str]:
    """Every caption that can be drawn, some more than once."""
    for number, view in enumerate(plan.all_views):
        item = _item_with_background(plan, number)
        rule = _rule(plan, view.item, config)
        if rule.dropout or rule.dropout_epochs:
            yield "" if rule.drops_trigger else rule.trigger
        if rule.dropout < 1:
            yield from _undropped_captions(
                item, view.item, dataclasses.replace(rule, dropout=0.0, dropout_epochs=0), config
            )


def _undropped_captions(item: Item, number: int, rule: CaptionRule, config: TrainConfig) -> Iterator[str]:
    """All captions of an item that dropout leaves."""
    if config.caption_variants and not rule.is_fixed:
        for variant in range(config.caption_variants):
            generator = _variant_generator(config, number, variant)
            yield draw_caption(item.caption, rule, random.Random(0), lines=item.lines, variant=generator)
        return
    plain = dataclasses.replace(rule, lines="joined")
    texts = [item.caption]
    if item.lines and rule.lines != "joined":
        texts = list(item.lines if rule.lines == "random" else item.lines[:1])
    for text in texts:
        yield draw_caption(text, plain, random.Random(0))


def _item_with_background(plan: Plan, number: int) -> Item:
    """The item of a view, with the tag of the view's background in its caption."""
    view = plan.all_views[number]
    item = plan.dataset.items[view.item]
    settings = plan.dataset.concepts[item.concept].settings
    if not (settings.tag_background and view.background):
        return item
    lines = tuple(add_background_tag(line, view, settings) for line in item.lines)
    return dataclasses.replace(item, caption=add_background_tag(item.caption, view, settings), lines=lines)


def _rule(plan: Plan, item: int, config: TrainConfig) -> CaptionRule:
    concept = plan.dataset.concepts[plan.dataset.items[item].concept]
    return make_caption_rule(config, concept.trigger, concept.settings, total_steps=plan.total_steps)


def _variant_generator(config: TrainConfig, item: int, number: int) -> random.Random:
    return random_for(config.seed, "caption variants", item, number)
