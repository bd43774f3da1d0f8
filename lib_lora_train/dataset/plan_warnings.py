"""Warnings and hints about a plan, each with the reason and what to do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from lib_lora_train.config.train_config import TrainConfig, duration_in_steps
from lib_lora_train.core.errors import Level, Problem
from lib_lora_train.core.image_sizes import MAX_SHARP_ENLARGEMENT
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.guide_checks import check_guides
from lib_lora_train.dataset.plan import BucketSummary, Plan
from lib_lora_train.dataset.repeats import proportions
from lib_lora_train.dataset.scan import Dataset

_MAX_CROP = 0.2
_MAX_IMBALANCE = 2  # times as many samples as another concept
_MAX_LISTED = 4


def check_plan(plan: Plan, config: TrainConfig) -> tuple[Problem, ...]:
    """All warnings and hints about a plan; none of them blocks training."""
    return (
        *_check_max_steps(plan, config),
        *_check_warmup(plan, config),
        *_check_decay(plan, config),
        *_check_shares(plan, config),
        *_check_batches(plan),
        *_check_accumulation(plan),
        *_check_regularisation(plan),
        *_check_enlarged(plan),
        *_check_cut(plan),
        *_check_views(plan),
        *check_guides(plan, config),
    )


def report_balancing(before: Dataset, after: Dataset) -> tuple[Problem, ...]:
    """Each concept's repeats and share before and after balancing; nothing if balancing changed nothing."""
    if before.concepts == after.concepts:
        return ()
    counts = Counter(item.concept for item in before.items)
    to_learn = [number for number, concept in enumerate(before.concepts) if not concept.is_regularisation]
    old, new = (proportions([counts[n] * dataset.concepts[n].repeats for n in to_learn]) for dataset in (before, after))
    parts = [
        f"{after.concepts[n].name} × {before.concepts[n].repeats} → × {after.concepts[n].repeats} ({a:.0%} → {b:.0%})"
        for n, a, b in zip(to_learn, old, new, strict=True)
    ]
    text = f"balance_repeats shows every concept about equally often: {', '.join(parts)}."
    return (Problem("hint", "", text),)


def _check_max_steps(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    planned = plan.steps_per_epoch * config.epochs
    if plan.total_steps < planned:
        inside = plan.total_steps % plan.steps_per_epoch != 0
        where = f"within epoch {plan.epochs}" if inside else f"after epoch {plan.epochs}"
        text = (
            f"{config.max_steps} ends the run {where}; {count(config.epochs, 'epoch')} would be "
            f"{count(planned, 'step')}."
        )
        yield Problem("warning", "max_steps", text)


def _check_warmup(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    if config.warmup >= 1 and config.warmup >= plan.total_steps:
        text = (
            f"takes {count(config.warmup, 'step')}, and the run {count(plan.total_steps, 'step')}: the full learning "
            "rate is never reached. Use a fraction of the run instead, such as 0.05."
        )
        yield Problem("warning", "warmup", text)


def _check_decay(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    warmup, decay = (duration_in_steps(duration, plan.total_steps) for duration in (config.warmup, config.lr_decay))
    if config.lr_schedule == "warmup_stable_decay" and config.lr_decay >= 1 and warmup + decay > plan.total_steps:
        text = (
            f"takes {count(decay, 'step')} and the warm-up {count(warmup, 'step')}, but the run has only "
            f"{count(plan.total_steps, 'step')}: the decay is shortened and no step has the full learning rate. Use "
            "a fraction of the run instead, such as 0.1."
        )
        yield Problem("warning", "lr_decay", text)


def _check_shares(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    """Concepts with far more samples than another."""
    concepts = plan.dataset.concepts
    counts = Counter(item.concept for item in plan.dataset.items)
    samples = {n: counts[n] * c.repeats for n, c in enumerate(concepts) if not c.is_regularisation and counts[n]}
    if config.balance_repeats or len(samples) < 2:
        return
    most, least = max(samples, key=lambda n: samples[n]), min(samples, key=lambda n: samples[n])
    if samples[most] > _MAX_IMBALANCE * samples[least]:
        text = (
            f"{concepts[most].name} has {count(samples[most], 'sample')} per epoch, {concepts[least].name} only "
            f"{samples[least]}, so the first is learnt long before the second. Balanced repeats even this out."
        )
        yield Problem("hint", "balance_repeats", text)


def _check_batches(plan: Plan) -> Iterator[Problem]:
    """Buckets whose last batch is not full, as a batch never mixes buckets."""
    unfilled = [b for b in plan.buckets if 0 < b.last_batch_fill < plan.batch_size]
    if not unfilled:
        return
    shown = ", ".join(
        f"{b.width}×{b.height} ({b.last_batch_fill} of {plan.batch_size})" for b in unfilled[:_MAX_LISTED]
    )
    more = f" and {len(unfilled) - _MAX_LISTED} more" if len(unfilled) > _MAX_LISTED else ""
    text = (
        f"{len(unfilled)} of {count(plan.micro_batches_per_epoch, 'batch', 'batches')} per epoch "
        f"{'is' if len(unfilled) == 1 else 'are'} not full: {shown}{more}. Images in them weigh more than others. "
        f"{_batch_advice(plan, unfilled)}"
    )
    yield Problem(_level_by_share(len(unfilled), plan.micro_batches_per_epoch), "batch_size", text)


def _level_by_share(part: int, whole: int) -> Level:
    """A warning from one batch in ten, below that a hint."""
    return "warning" if part * 10 >= whole else "hint"


def suggest_batch_size(plan: Plan) -> tuple[int, int] | None:
    """(batch size, accumulation) that leave no batch and no step incomplete, as near as possible to the plan's product.

    The batch size divides the samples of every bucket and is at least 2 and at most the current one; the accumulation
    divides the micro-batches that an epoch then has. None if there is no such pair.
    """
    images_per_step = plan.batch_size * plan.accumulation
    counts = [bucket.sample_count for bucket in plan.buckets if bucket.sample_count]
    common = math.gcd(*counts)
    pairs = [
        (size, accumulation)
        for size in range(2, plan.batch_size + 1)
        if common % size == 0
        for accumulation in range(1, 2 * images_per_step // size + 1)
        if sum(counts) // size % accumulation == 0
    ]
    return min(pairs, key=lambda pair: (abs(math.log(pair[0] * pair[1] / images_per_step)), -pair[0]), default=None)


def _batch_advice(plan: Plan, unfilled: list[BucketSummary]) -> str:
    suggestion = suggest_batch_size(plan)
    if suggestion:
        size, accumulation = suggestion
        text = f"A batch size of {size} fills every batch"
        if accumulation == 1:
            return f"{text}."
        return (
            f"{text}; with gradient_accumulation {accumulation} a step then has {count(size * accumulation, 'image')}."
        )
    if len(plan.buckets) == 1:
        missing = plan.batch_size - unfilled[0].last_batch_fill
        return f"{count(missing, 'more sample')} per epoch, or other repeats, would fill it."
    return "Make the repeats a multiple of the batch size, or use a larger bucket_step to get fewer buckets."


def _check_accumulation(plan: Plan) -> Iterator[Problem]:
    left_over = plan.micro_batches_per_epoch % plan.accumulation
    if left_over:
        text = (
            f"the last step of each epoch accumulates only {left_over} of {plan.accumulation} micro-batches, as an "
            f"epoch has {plan.micro_batches_per_epoch}."
        )
        yield Problem("hint", "gradient_accumulation", text)


def _check_regularisation(plan: Plan) -> Iterator[Problem]:
    concepts = plan.dataset.concepts
    images = sum(concept.image_count for concept in concepts if concept.is_regularisation)
    quota = sum(bucket.regularisation_count for bucket in plan.buckets)
    most = max((n for item, n in enumerate(plan.repeats) if plan.is_regularisation(item)), default=0)
    if most > 1:
        text = (
            f"each epoch needs {count(quota, 'sample')} of {count(images, 'regularisation image')}, so one image "
            f"is used up to {most}× and may be memorised. Add more regularisation images."
        )
        yield Problem("hint", "regularisation", text)
    never = [b for b in plan.buckets if b.sample_count == 0]
    if never:
        sizes = ", ".join(f"{b.width}×{b.height}" for b in never)
        text = (
            f"the regularisation images in the buckets {sizes} are never used, as {count(quota, 'sample')} per epoch "
            "are too few for all buckets."
        )
        yield Problem("warning", "regularisation", text)


def _check_enlarged(plan: Plan) -> Iterator[Problem]:
    pairs = zip(plan.dataset.items, plan.placements, strict=True)
    enlarged = [(place.resize_width / item.image.width, item.image) for item, place in pairs]
    enlarged = [(scale, image) for scale, image in enlarged if scale > MAX_SHARP_ENLARGEMENT]
    if enlarged:
        scale, image = max(enlarged, key=lambda pair: pair[0])
        text = (
            f"{len(enlarged)} of {count(len(plan.placements), 'image')} must be enlarged by more than "
            f"{MAX_SHARP_ENLARGEMENT:g}×, {image.path.name} ({image.width}×{image.height}) the most: {scale:.1f}×. The "
            "LoRA learns their blur. Use larger images, a lower resolution or bucket_no_upscale."
        )
        yield Problem("warning", "resolution", text)


def _check_cut(plan: Plan) -> Iterator[Problem]:
    pairs = zip(plan.dataset.items, plan.placements, strict=True)
    cut = [(1 - p.width * p.height / (p.resize_width * p.resize_height), item.image) for item, p in pairs]
    cut = [(share, image) for share, image in cut if share > _MAX_CROP]
    if cut:
        share, image = max(cut, key=lambda pair: pair[0])
        text = (
            f"{len(cut)} of {count(len(plan.placements), 'image')} would lose more than {_MAX_CROP:.0%} of their "
            "area to "
            f"cropping, {image.path.name} ({image.width}×{image.height}) the most: {share:.0%}. Crop them yourself, "
            "or allow a bucket of their shape (enable_buckets, min_bucket, max_bucket)."
        )
        yield Problem("warning", "max_bucket", text)


def _check_views(plan: Plan) -> Iterator[Problem]:
    """Images that fit their bucket exactly, so that random_crop does nothing for them."""
    crops = [
        place
        for item, place in zip(plan.dataset.items, plan.placements, strict=True)
        if plan.dataset.concepts[item.concept].settings.random_crop
    ]
    fixed = sum((p.resize_width, p.resize_height) == (p.width, p.height) for p in crops)
    if crops and fixed * 2 >= len(crops):
        text = f"has no effect on {fixed} of {count(len(crops), 'image')}, which need no cropping to fit into a bucket."
        yield Problem("hint", "random_crop", text)
