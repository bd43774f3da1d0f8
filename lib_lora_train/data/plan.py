"""The plan: which pictures go to which bucket, and how many steps follow, before anything heavy starts.

A sample is one showing of a picture. A micro-batch holds samples of one bucket only; an optimiser step is up to
`accumulation` micro-batches. Every epoch has the same number of each, so all counts are known beforehand.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from lib_lora_train.config import Concept, TrainConfig
from lib_lora_train.data.balance import balanced_repeats, draw_evenly, share_out
from lib_lora_train.data.buckets import Placement, bucket_rule, place
from lib_lora_train.data.findings import balance_findings, plan_findings
from lib_lora_train.data.holdout import hold_out, holdout_findings
from lib_lora_train.data.scan import Dataset
from lib_lora_train.data.views import View, views_of
from lib_lora_train.errors import DataError, Problem
from lib_lora_train.randomness import random_for

Size = tuple[int, int]
LEAST_RESOLUTION = 64
_T = TypeVar("_T")


@dataclass(frozen=True)
class BucketSummary:
    """One bucket; counts are per epoch.

    `sample_count` counts pictures with their repeats, `regularisation_count` those of them that are regularisation;
    `last_batch_fill` is the number of samples in the bucket's last micro-batch, 1 to the batch size.
    """

    width: int
    height: int
    image_count: int
    sample_count: int
    last_batch_fill: int
    regularisation_count: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: `items` index the data set; `draws` number the samples through the whole run, from 0.

    A draw number never comes twice: it is the counter of the sample's randomness (noise, timestep, caption).
    """

    width: int
    height: int
    items: tuple[int, ...]
    draws: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """All of a run that is known before it starts.

    `placements` and `repeats` are per item; a regularisation picture's repeats are the most it can get in one epoch,
    as its showings are drawn anew for each. `epochs` counts the last one even where `total_steps` ends within it.
    `views` are all views of all items: the first ones in the order of the items, then the others. Without any, each
    item has its plain one. `validation` plans the pictures that are kept from training, one view of each.
    """

    dataset: Dataset
    placements: tuple[Placement, ...]
    buckets: tuple[BucketSummary, ...]
    repeats: tuple[int, ...]
    batch_size: int
    accumulation: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    warnings: tuple[Problem, ...]
    views: tuple[View, ...] = ()
    validation: Plan | None = None

    @cached_property
    def all_views(self) -> tuple[View, ...]:
        """`views`, or the plain ones."""
        return self.views or tuple(View(item, place) for item, place in enumerate(self.placements))

    @cached_property
    def view_numbers(self) -> tuple[tuple[int, ...], ...]:
        """Per item, the numbers of its views in `all_views`; the first is the item's own number."""
        numbers: list[list[int]] = [[] for _ in self.placements]
        for number, view in enumerate(self.all_views):
            numbers[view.item].append(number)
        return tuple(map(tuple, numbers))

    def drawn_view(self, seed: int, item: int, draw: int) -> int:
        """The number of the view in which a sample shows its item, each as likely."""
        numbers = self.view_numbers[item]
        return numbers[0] if len(numbers) == 1 else random_for(seed, "view", draw).choice(numbers)

    @property
    def samples_per_epoch(self) -> int:
        """Showings per epoch, regularisation included."""
        return sum(bucket.sample_count for bucket in self.buckets)

    @property
    def micro_batches_per_epoch(self) -> int:
        """Forward passes per epoch."""
        return sum(ceil_div(bucket.sample_count, self.batch_size) for bucket in self.buckets)

    def is_regularisation(self, item: int) -> bool:
        """Whether an item shows what must not be forgotten."""
        return is_regularisation(self.dataset, item)


def is_regularisation(dataset: Dataset, item: int) -> bool:
    """Whether an item of the data set belongs to a regularisation folder."""
    return dataset.concepts[dataset.items[item].concept].is_regularisation


def make_plan(dataset: Dataset, config: TrainConfig) -> Plan:
    """The plan for a data set; DataError when all of its pictures are regularisation."""
    if all(is_regularisation(dataset, item) for item in range(len(dataset.items))):
        raise DataError("There are only regularisation pictures. Name a folder with pictures to learn.")
    own, held = hold_out(dataset, config.validation_share, config.seed)
    plan = _plan_of(own, config)
    validation = _plan_of(held, config) if held.items else None
    if validation:
        first = validation.views[: len(validation.dataset.items)]
        plan = dataclasses.replace(plan, validation=dataclasses.replace(validation, views=first, warnings=()))
    findings = holdout_findings(held, config.validation_share)
    return dataclasses.replace(plan, warnings=(*findings, *plan.warnings))


def _plan_of(dataset: Dataset, config: TrainConfig) -> Plan:
    dataset = at_resolutions(dataset)
    before = dataset
    if config.balance_repeats:
        dataset = balanced(dataset)
    placements = tuple(
        place(item.image.width, item.image.height, bucket_rule(config, item.resolution)) for item in dataset.items
    )
    members = _members(placements)
    quotas = _regularisation_quotas(dataset, members)
    buckets = tuple(
        _summary(dataset, size, items, quota=quotas.get(size, 0), batch_size=config.batch_size)
        for size, items in members.items()
    )
    micro_batches = sum(ceil_div(bucket.sample_count, config.batch_size) for bucket in buckets)
    steps_per_epoch = ceil_div(micro_batches, config.gradient_accumulation)
    all_steps = steps_per_epoch * config.epochs
    total_steps = min(all_steps, config.max_steps or all_steps)
    plan = Plan(
        dataset=dataset,
        placements=placements,
        buckets=buckets,
        repeats=_repeats(dataset, members, quotas),
        batch_size=config.batch_size,
        accumulation=config.gradient_accumulation,
        steps_per_epoch=steps_per_epoch,
        epochs=ceil_div(total_steps, steps_per_epoch),
        total_steps=total_steps,
        warnings=(),
        views=_views(dataset, placements),
    )
    return dataclasses.replace(plan, warnings=(*balance_findings(before, dataset), *plan_findings(plan, config)))


def balanced(dataset: Dataset) -> Dataset:
    """The data set with repeats that show every concept but regularisation about equally often."""
    counts = Counter(item.concept for item in dataset.items)
    own = [n for n, concept in enumerate(dataset.concepts) if not concept.is_regularisation and counts[n]]
    repeats = dict(zip(own, balanced_repeats([counts[n] for n in own]), strict=True))
    concepts = (
        dataclasses.replace(concept, repeats=repeats.get(number, concept.repeats))
        for number, concept in enumerate(dataset.concepts)
    )
    return dataclasses.replace(dataset, concepts=tuple(concepts))


def at_resolutions(dataset: Dataset) -> Dataset:
    """The data set with each item once for every resolution of its concept; one that is there already stays."""
    items = []
    for item in dataset.items:
        sides = resolutions_of(dataset.concepts[item.concept].settings) if not item.resolution else (item.resolution,)
        items += [dataclasses.replace(item, resolution=side) for side in sides or (0,)]
    return dataclasses.replace(dataset, items=tuple(items))


def resolutions_of(concept: Concept) -> tuple[int, ...]:
    """The sides in px that a concept asks for, none for the run's; DataError for what is no number."""
    texts = concept.resolutions.replace(",", " ").split()
    if not all(text.isdigit() and int(text) >= LEAST_RESOLUTION for text in texts):
        raise DataError(
            f"{concept.folder}: resolutions {concept.resolutions!r} are no sides in px. Write 512 or 512 768."
        )
    return tuple(dict.fromkeys(map(int, texts)))


def _views(dataset: Dataset, placements: Sequence[Placement]) -> tuple[View, ...]:
    own = [
        views_of(
            number,
            placement,
            dataset.concepts[item.concept].settings,
            content=item.image.content_hash,
            has_alpha=item.image.has_alpha,
        )
        for number, (item, placement) in enumerate(zip(dataset.items, placements, strict=True))
    ]
    return (*(views[0] for views in own), *(view for views in own for view in views[1:]))


def epoch_steps(plan: Plan, seed: int, epoch: int) -> tuple[tuple[MicroBatch, ...], ...]:
    """The optimiser steps of `epoch` (from 1), each the micro-batches whose gradients it combines.

    A function of its arguments alone: earlier epochs, pauses and samples do not matter. An epoch in which the run
    ends (`max_steps`) is cut there; epochs behind the end are empty. ValueError for an epoch below 1.
    """
    if epoch < 1:
        raise ValueError(f"epochs are counted from 1, not {epoch}")
    batches = _epoch_batches(plan, seed, epoch)
    random_for(seed, "batch order", epoch).shuffle(batches)
    micro_batches = []
    draw = (epoch - 1) * plan.samples_per_epoch
    for (width, height), items in batches:
        micro_batches.append(MicroBatch(width, height, items, tuple(range(draw, draw + len(items)))))
        draw += len(items)
    steps = [tuple(group) for group in _groups(micro_batches, plan.accumulation)]
    left = plan.total_steps - (epoch - 1) * plan.steps_per_epoch
    return tuple(steps[: max(left, 0)])


def _epoch_batches(plan: Plan, seed: int, epoch: int) -> list[tuple[Size, tuple[int, ...]]]:
    """The epoch's samples, shuffled within their bucket and cut into batches, bucket after bucket."""
    batches: list[tuple[Size, tuple[int, ...]]] = []
    quotas = {(bucket.width, bucket.height): bucket.regularisation_count for bucket in plan.buckets}
    for size, items in _members(plan.placements).items():
        generator = random_for(seed, "sample order", epoch, *size)
        own, regularisation = _split(plan.dataset, items)
        samples = [item for item in own for _ in range(plan.repeats[item])]
        if quotas[size]:
            weights = [_folder_repeats(plan.dataset, item) for item in regularisation]
            counts = draw_evenly(weights, quotas[size], generator)
            samples += [item for item, n in zip(regularisation, counts, strict=True) for _ in range(n)]
        generator.shuffle(samples)
        batches += [(size, tuple(group)) for group in _groups(samples, plan.batch_size)]
    return batches


# --- counting -----------------------------------------------------------------------------------


def ceil_div(number: int, divisor: int) -> int:
    """number / divisor, rounded up."""
    return -(-number // divisor)


def _groups(values: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _members(placements: Sequence[Placement]) -> dict[Size, list[int]]:
    """Bucket size → the items in it; sizes sorted, items in their order."""
    members: dict[Size, list[int]] = {}
    for item, placement in enumerate(placements):
        members.setdefault((placement.width, placement.height), []).append(item)
    return dict(sorted(members.items()))


def _split(dataset: Dataset, items: Sequence[int]) -> tuple[list[int], list[int]]:
    """(to be learnt, regularisation)."""
    own = [item for item in items if not is_regularisation(dataset, item)]
    return own, [item for item in items if is_regularisation(dataset, item)]


def _folder_repeats(dataset: Dataset, item: int) -> int:
    return dataset.concepts[dataset.items[item].concept].repeats


def _regularisation_quotas(dataset: Dataset, members: Mapping[Size, Sequence[int]]) -> dict[Size, int]:
    """Regularisation samples per epoch and bucket, together as many as there are samples to be learnt.

    They are shared out over the buckets once for the whole run, so that every epoch has the same number of steps;
    which pictures fill a bucket's share is drawn anew for each epoch.
    """
    total = sum(_folder_repeats(dataset, item) for items in members.values() for item in _split(dataset, items)[0])
    weights = {
        size: sum(_folder_repeats(dataset, item) for item in _split(dataset, items)[1])
        for size, items in members.items()
    }
    sizes = [size for size, weight in weights.items() if weight]
    if not sizes:
        return {}
    return dict(zip(sizes, share_out(total, [weights[size] for size in sizes]), strict=True))


def _repeats(dataset: Dataset, members: Mapping[Size, Sequence[int]], quotas: Mapping[Size, int]) -> tuple[int, ...]:
    """Per item, the showings per epoch; of a regularisation picture the most that can fall to it."""
    repeats = [_folder_repeats(dataset, item) for item in range(len(dataset.items))]
    for size, items in members.items():
        regularisation = _split(dataset, items)[1]
        whole = sum(repeats[item] for item in regularisation)
        for item in regularisation:
            repeats[item] = ceil_div(quotas[size] * _folder_repeats(dataset, item), whole)
    return tuple(repeats)


def _summary(dataset: Dataset, size: Size, items: Sequence[int], *, quota: int, batch_size: int) -> BucketSummary:
    count = quota + sum(_folder_repeats(dataset, item) for item in _split(dataset, items)[0])
    fill = count - (ceil_div(count, batch_size) - 1) * batch_size if count else 0
    return BucketSummary(*size, len(items), count, fill, quota)


# --- for people ---------------------------------------------------------------------------------


def describe_plan(plan: Plan) -> str:
    """The plan in aligned lines: pictures, steps, buckets, findings."""
    per_step = plan.batch_size * plan.accumulation
    counted = f"{plan.steps_per_epoch:,} per epoch × {plan.epochs:,} epochs"
    cut = plan.steps_per_epoch * plan.epochs - plan.total_steps
    sections = {
        "Pictures": _concept_lines(plan),
        "Steps": [
            f"{plan.total_steps:,} = {counted}" + (f" − {cut:,} (max_steps)" if cut else ""),
            f"{per_step} pictures per step: batch {plan.batch_size} × accumulation {plan.accumulation}; "
            f"{plan.samples_per_epoch:,} samples per epoch",
        ],
        "Buckets": _bucket_lines(plan),
    }
    lines = []
    for title, texts in sections.items():
        lines += [f"{title if number == 0 else '':<10}{text}".rstrip() for number, text in enumerate(texts)]
    findings = (*plan.dataset.skipped, *plan.warnings)
    if findings:
        lines += ["Findings", *(f"  {problem.level}: {problem}" for problem in findings)]
    return "\n".join(lines)


def _concept_lines(plan: Plan) -> list[str]:
    rows = []
    kept = Counter(item.concept for item in plan.validation.dataset.items) if plan.validation else Counter()
    quota = sum(bucket.regularisation_count for bucket in plan.buckets)
    for number, concept in enumerate(plan.dataset.concepts):
        count = sum(item.concept == number for item in plan.dataset.items)
        shown = f"× {concept.repeats:,} = {count * concept.repeats:,} samples per epoch"
        if concept.is_regularisation:
            shown = f"regularisation, balanced to {quota:,} samples per epoch in all"
        shown += f", {kept[number]:,} kept for validation" if kept[number] else ""
        trigger = f"trigger: {concept.trigger}" if concept.trigger else ""
        sides = f" at {count // concept.image_count} resolutions" if count > concept.image_count else ""
        rows.append((concept.name, f"{concept.image_count:,}{sides}", shown, trigger))
    return _aligned(rows, "<><<")


def _bucket_lines(plan: Plan) -> list[str]:
    rows = [("size", "pictures", "samples", "batches", "last batch")]
    for bucket in plan.buckets:
        batches = ceil_div(bucket.sample_count, plan.batch_size)
        fill = f"{bucket.last_batch_fill} of {plan.batch_size}"
        size = f"{bucket.width} × {bucket.height}"
        rows.append((size, f"{bucket.image_count:,}", f"{bucket.sample_count:,}", f"{batches:,}", fill))
    return _aligned(rows, ">>>>>")


def _aligned(rows: Sequence[Sequence[str]], alignments: str) -> list[str]:
    """Rows as lines whose columns, two blanks apart, have equal widths."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, alignments, widths, strict=True)).rstrip()
        for row in rows
    ]
