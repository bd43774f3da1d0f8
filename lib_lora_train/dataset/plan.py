"""What a plan is: which images are in which bucket, how many steps follow, and what each step of an epoch shows.

A sample is one showing of an image. A micro-batch holds samples of one bucket only; an optimiser step is up to
`accumulation` micro-batches. Every epoch has the same number of each, so all counts are known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from lib_lora_train.core.errors import Problem
from lib_lora_train.core.seeding import random_for
from lib_lora_train.dataset.augmentation import View
from lib_lora_train.dataset.buckets import Placement
from lib_lora_train.dataset.repeats import draw_systematically
from lib_lora_train.dataset.scan import Dataset

Size = tuple[int, int]
_T = TypeVar("_T")


@dataclass(frozen=True)
class BucketSummary:
    """One bucket; counts are per epoch.

    `sample_count` counts images with their repeats, `regularisation_count` those of them that are regularisation;
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
    """One forward pass: `items` index the dataset; `draws` number the samples through the whole run, from 0.

    A draw number never comes twice: it is the counter of the sample's randomness (noise, timestep, caption).
    """

    width: int
    height: int
    items: tuple[int, ...]
    draws: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """All of a run that is known before it starts.

    `placements` and `repeats` are per item; a regularisation image's repeats are the most it can get in one epoch,
    as its showings are drawn anew for each. `epochs` counts the last one even where `total_steps` ends within it.
    `views` are all views of all items: the first ones in the order of the items, then the others. Without any, each
    item has its plain one. `validation` plans the images that are kept from training, one view of each.
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

    def draw_view(self, seed: int, item: int, draw: int) -> int:
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
    """Whether an item of the dataset belongs to a regularisation folder."""
    return dataset.concepts[dataset.items[item].concept].is_regularisation


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
    for size, items in group_by_bucket(plan.placements).items():
        generator = random_for(seed, "sample order", epoch, *size)
        own, regularisation = split_regularisation(plan.dataset, items)
        samples = [item for item in own for _ in range(plan.repeats[item])]
        if quotas[size]:
            weights = [folder_repeats(plan.dataset, item) for item in regularisation]
            counts = draw_systematically(weights, quotas[size], generator)
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


def group_by_bucket(placements: Sequence[Placement]) -> dict[Size, list[int]]:
    """Bucket size → the items in it; sizes sorted, items in their order."""
    members: dict[Size, list[int]] = {}
    for item, placement in enumerate(placements):
        members.setdefault((placement.width, placement.height), []).append(item)
    return dict(sorted(members.items()))


def split_regularisation(dataset: Dataset, items: Sequence[int]) -> tuple[list[int], list[int]]:
    """(those to be learnt, those of regularisation folders)."""
    own = [item for item in items if not is_regularisation(dataset, item)]
    return own, [item for item in items if is_regularisation(dataset, item)]


def folder_repeats(dataset: Dataset, item: int) -> int:
    """How often an epoch shows an item by its folder's repeats."""
    return dataset.concepts[dataset.items[item].concept].repeats
