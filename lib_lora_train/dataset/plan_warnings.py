"""What a plan should make its user think about, each with the reason and what could be done."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from lib_lora_train.config.train_config import TrainConfig, duration_in_steps
from lib_lora_train.core.errors import Level, Problem
from lib_lora_train.core.image_sizes import MAX_SHARP_ENLARGEMENT
from lib_lora_train.dataset.augmentation import find_asymmetric_word
from lib_lora_train.dataset.plan import BucketSummary, Plan
from lib_lora_train.dataset.repeats import shares
from lib_lora_train.dataset.scan import Dataset

_MUCH_CUT = 0.2
_UNBALANCED = 2  # times as often as another concept
_SHOWN = 4


def check_plan(plan: Plan, config: TrainConfig) -> tuple[Problem, ...]:
    """All findings about a plan, none of which stands against training."""
    return (
        *_about_max_steps(plan, config),
        *_about_warmup(plan, config),
        *_about_decay(plan, config),
        *_about_shares(plan, config),
        *_about_batches(plan),
        *_about_accumulation(plan),
        *_about_regularisation(plan),
        *_about_enlarged(plan),
        *_about_cut(plan),
        *_about_mirroring(plan),
        *_about_views(plan),
    )


def report_balancing(before: Dataset, after: Dataset) -> tuple[Problem, ...]:
    """What balancing changed: each concept's repeats and share, before and after; nothing where it changed nothing."""
    if before.concepts == after.concepts:
        return ()
    counts = Counter(item.concept for item in before.items)
    own = [number for number, concept in enumerate(before.concepts) if not concept.is_regularisation]
    old, new = (shares([counts[n] * dataset.concepts[n].repeats for n in own]) for dataset in (before, after))
    parts = [
        f"{after.concepts[n].name} × {before.concepts[n].repeats} → × {after.concepts[n].repeats} ({a:.0%} → {b:.0%})"
        for n, a, b in zip(own, old, new, strict=True)
    ]
    text = f"shows every concept about equally often: {', '.join(parts)}."
    return (Problem("hint", "balance_repeats", text),)


def _about_max_steps(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    planned = plan.steps_per_epoch * config.epochs
    if plan.total_steps < planned:
        inside = plan.total_steps % plan.steps_per_epoch != 0
        where = f"within epoch {plan.epochs}" if inside else f"after epoch {plan.epochs}"
        text = f"{config.max_steps} ends the run {where}; {config.epochs} epochs would take {planned} steps."
        yield Problem("warning", "max_steps", text)


def _about_warmup(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    if config.warmup >= 1 and config.warmup >= plan.total_steps:
        text = (
            f"{config.warmup:g} steps of warm-up are not over when the run ends after {plan.total_steps}: the full "
            "learning rate is never reached. Give a share of all steps, such as 0.05."
        )
        yield Problem("warning", "warmup", text)


def _about_decay(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    warmup, decay = (duration_in_steps(duration, plan.total_steps) for duration in (config.warmup, config.lr_decay))
    if config.lr_schedule == "warmup_stable_decay" and config.lr_decay >= 1 and warmup + decay > plan.total_steps:
        text = (
            f"{decay} steps of decay after {warmup} of warm-up are more than the run's {plan.total_steps}: the decay "
            "is shortened and no step is at the full learning rate. Give a share of all steps, such as 0.1."
        )
        yield Problem("warning", "lr_decay", text)


def _about_shares(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    """Concepts of which one is shown far more often than another."""
    concepts = plan.dataset.concepts
    counts = Counter(item.concept for item in plan.dataset.items)
    shown = {n: counts[n] * c.repeats for n, c in enumerate(concepts) if not c.is_regularisation and counts[n]}
    if config.balance_repeats or len(shown) < 2:
        return
    most, least = max(shown, key=lambda n: shown[n]), min(shown, key=lambda n: shown[n])
    if shown[most] > _UNBALANCED * shown[least]:
        text = (
            f"{concepts[most].name} is shown {shown[most]} times per epoch, {concepts[least].name} {shown[least]}: it "
            "is learnt long before the other. Balanced repeats show both about equally often."
        )
        yield Problem("hint", "balance_repeats", text)


def _about_batches(plan: Plan) -> Iterator[Problem]:
    """A batch never mixes buckets, so the last one of a bucket may have room left."""
    open_ones = [b for b in plan.buckets if 0 < b.last_batch_fill < plan.batch_size]
    if not open_ones:
        return
    shown = ", ".join(f"{b.width}×{b.height} ({b.last_batch_fill} of {plan.batch_size})" for b in open_ones[:_SHOWN])
    more = f" and {len(open_ones) - _SHOWN} more" if len(open_ones) > _SHOWN else ""
    text = (
        f"{len(open_ones)} of {plan.micro_batches_per_epoch} batches per epoch are not full: {shown}{more}. "
        f"Images in them weigh more than others. {_batch_advice(plan, open_ones)}"
    )
    yield Problem(_level_by_share(len(open_ones), plan.micro_batches_per_epoch), "batch_size", text)


def _level_by_share(part: int, whole: int) -> Level:
    """One batch in ten or more is worth a warning."""
    return "warning" if part * 10 >= whole else "hint"


def suggest_batch_size(plan: Plan) -> tuple[int, int] | None:
    """(batch size, accumulation) with full batches only, as near as can be to the images per step there are now.

    The batch size divides every bucket's samples and is at least 2 and at most the present one; the accumulation
    divides the micro-batches that an epoch then has, so that its last step is whole too. None where none does.
    """
    wanted = plan.batch_size * plan.accumulation
    counts = [bucket.sample_count for bucket in plan.buckets if bucket.sample_count]
    common = math.gcd(*counts)
    pairs = [
        (size, accumulation)
        for size in range(2, plan.batch_size + 1)
        if common % size == 0
        for accumulation in range(1, 2 * wanted // size + 1)
        if sum(counts) // size % accumulation == 0
    ]
    return min(pairs, key=lambda pair: (abs(math.log(pair[0] * pair[1] / wanted)), -pair[0]), default=None)


def _batch_advice(plan: Plan, open_ones: list[BucketSummary]) -> str:
    fitting = suggest_batch_size(plan)
    if fitting:
        size, accumulation = fitting
        fills = f"A batch size of {size} fills all"
        if accumulation == 1:
            return f"{fills}."
        return f"{fills}; with gradient_accumulation {accumulation} a step then has {size * accumulation} images."
    if len(plan.buckets) == 1:
        missing = plan.batch_size - open_ones[0].last_batch_fill
        return f"{missing} more samples per epoch, or another number of repeats, would fill it."
    return "Repeats that are a multiple of the batch size fill all; a larger bucket_step makes fewer buckets."


def _about_accumulation(plan: Plan) -> Iterator[Problem]:
    left_over = plan.micro_batches_per_epoch % plan.accumulation
    if left_over:
        text = (
            f"the last step of an epoch has {left_over} of {plan.accumulation} forward passes, as an epoch has "
            f"{plan.micro_batches_per_epoch}."
        )
        yield Problem("hint", "gradient_accumulation", text)


def _about_regularisation(plan: Plan) -> Iterator[Problem]:
    concepts = plan.dataset.concepts
    count = sum(concept.image_count for concept in concepts if concept.is_regularisation)
    quota = sum(bucket.regularisation_count for bucket in plan.buckets)
    most = max((n for item, n in enumerate(plan.repeats) if plan.is_regularisation(item)), default=0)
    if most > 1:
        text = (
            f"{count} images stand against {quota} samples to be learnt per epoch, so that one is shown up to {most} "
            "times: it may be learnt by heart. More images would help."
        )
        yield Problem("hint", "regularisation", text)
    never = [b for b in plan.buckets if b.sample_count == 0]
    if never:
        sizes = ", ".join(f"{b.width}×{b.height}" for b in never)
        text = f"buckets {sizes} hold regularisation images that are never shown: {quota} samples are too few for all."
        yield Problem("warning", "regularisation", text)


def _about_enlarged(plan: Plan) -> Iterator[Problem]:
    pairs = zip(plan.dataset.items, plan.placements, strict=True)
    enlarged = [(place.resize_width / item.image.width, item.image) for item, place in pairs]
    enlarged = [(scale, image) for scale, image in enlarged if scale > MAX_SHARP_ENLARGEMENT]
    if enlarged:
        scale, image = max(enlarged, key=lambda pair: pair[0])
        text = (
            f"{len(enlarged)} of {len(plan.placements)} images are enlarged by more than a quarter, "
            f"{image.path.name} ({image.width}×{image.height}) the most: {scale:.1f} times. The LoRA learns "
            "their blur. Use larger images, a lower resolution or bucket_no_upscale."
        )
        yield Problem("warning", "resolution", text)


def _about_cut(plan: Plan) -> Iterator[Problem]:
    pairs = zip(plan.dataset.items, plan.placements, strict=True)
    cut = [(1 - p.width * p.height / (p.resize_width * p.resize_height), item.image) for item, p in pairs]
    cut = [(share, image) for share, image in cut if share > _MUCH_CUT]
    if cut:
        share, image = max(cut, key=lambda pair: pair[0])
        text = (
            f"{len(cut)} of {len(plan.placements)} images lose more than a fifth at their edges, {image.path.name} "
            f"({image.width}×{image.height}) the most: {share:.0%}. Crop them yourself, or allow a bucket of their "
            "shape (enable_buckets, min_bucket, max_bucket)."
        )
        yield Problem("warning", "max_bucket", text)


def _about_mirroring(plan: Plan) -> Iterator[Problem]:
    """Captions that name what has a left and a right."""
    items = [item for item in plan.dataset.items if plan.dataset.concepts[item.concept].settings.flip]
    named = [(item, find_asymmetric_word(item.caption)) for item in items]
    named = [(item, word) for item, word in named if word]
    if named:
        item, word = named[0]
        text = (
            f"mirrors images whose captions name something with a left and a right: {len(named)} of {len(items)}, "
            f"{item.image.path.name} ({word!r}) first. They are learnt both ways. Switch flip off for them."
        )
        yield Problem("hint", "flip", text)


def _about_views(plan: Plan) -> Iterator[Problem]:
    """Images whose crops have no room, so that random_crop does nothing for them."""
    crops = [
        place
        for item, place in zip(plan.dataset.items, plan.placements, strict=True)
        if plan.dataset.concepts[item.concept].settings.random_crop
    ]
    fixed = sum((p.resize_width, p.resize_height) == (p.width, p.height) for p in crops)
    if crops and fixed * 2 >= len(crops):
        text = f"has no effect on {fixed} of {len(crops)} images: their bucket has their own shape."
        yield Problem("hint", "random_crop", text)
