"""The plan of a run: buckets, repeats, steps, and the samples in each step of an epoch.

A sample is one use of an image in training. A micro-batch holds samples of one bucket only; an optimiser step is up to
`accumulation` micro-batches. Every epoch has the same number of each, so all counts are known before the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from lib_lora_train.core.errors import Problem
from lib_lora_train.core.seeding import random_for, shuffle
from lib_lora_train.dataset.augmentation import View
from lib_lora_train.dataset.buckets import Placement
from lib_lora_train.dataset.repeats import draw_systematically
from lib_lora_train.dataset.scan import Dataset

Size = tuple[int, int]
_T = TypeVar("_T")
_BATCHES_AT_ONCE = 50_000  # between two checks of whether to stop


@dataclass(frozen=True)
class BucketSummary:
    """One bucket, with its counts per epoch.

    `sample_count` is the number of samples (images × repeats), `regularisation_count` how many of them are
    regularisation; `last_batch_fill` is the number of samples in the bucket's last micro-batch, 1 to the batch size.
    """

    width: int
    height: int
    image_count: int
    sample_count: int
    last_batch_fill: int
    regularisation_count: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward pass: `items` index the dataset, `draws` number the samples of the whole run from 0.

    A draw number is unique in a run: it seeds the sample's randomness (noise, timestep, caption).
    """

    width: int
    height: int
    items: tuple[int, ...]
    draws: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Everything about a run that is known before it starts.

    `placements` and `repeats` are per item. The repeats of a regularisation image are the maximum in one epoch, as its
    samples are drawn separately for each epoch. `epochs` includes the last one even if `total_steps` ends inside it.
    `views` holds the first view of every item, in the order of the items, then all others; if empty, each item has its
    unaugmented view only. `validation` is the plan of the validation images, one view each.
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
        """`views`, or the unaugmented ones if there are none."""
        return self.views or tuple(View(item, place) for item, place in enumerate(self.placements))

    @cached_property
    def view_numbers(self) -> tuple[tuple[int, ...], ...]:
        """Per item, the numbers of its views in `all_views`; the first is the item's own number."""
        numbers: list[list[int]] = [[] for _ in self.placements]
        for number, view in enumerate(self.all_views):
            numbers[view.item].append(number)
        return tuple(map(tuple, numbers))

    def draw_view(self, seed: int, item: int, draw: int) -> int:
        """The number of the view that a sample uses, drawn uniformly from its item's views."""
        numbers = self.view_numbers[item]
        return numbers[0] if len(numbers) == 1 else random_for(seed, "view", draw).choice(numbers)

    @property
    def samples_per_epoch(self) -> int:
        """Samples per epoch, including regularisation."""
        return sum(bucket.sample_count for bucket in self.buckets)

    @property
    def micro_batches_per_epoch(self) -> int:
        """Forward passes per epoch."""
        return sum(ceil_div(bucket.sample_count, self.batch_size) for bucket in self.buckets)

    def is_regularisation(self, item: int) -> bool:
        """Whether an item belongs to a regularisation folder."""
        return is_regularisation(self.dataset, item)


def is_regularisation(dataset: Dataset, item: int) -> bool:
    """Whether an item of the dataset belongs to a regularisation folder."""
    return dataset.concepts[dataset.items[item].concept].is_regularisation


def epoch_steps(
    plan: Plan, seed: int, epoch: int, is_stopped: Callable[[], bool] = lambda: False
) -> tuple[tuple[MicroBatch, ...], ...]:
    """The optimiser steps of `epoch` (from 1), each a tuple of the micro-batches that it accumulates.

    A pure function of its arguments: earlier epochs, pauses and sample images do not matter. The epoch in which the
    run ends (`max_steps`) is cut short; later epochs are empty. An epoch may have millions of samples, so `is_stopped`
    is asked in between; once it returns True, the steps are not completed and () is returned. ValueError for an epoch
    below 1.
    """
    if epoch < 1:
        raise ValueError(f"epochs are counted from 1, not {epoch}")
    batches: list[tuple[Size, tuple[int, ...]]] = []
    for batch in _epoch_batches(plan, seed, epoch, is_stopped):
        if len(batches) % _BATCHES_AT_ONCE == 0 and is_stopped():
            return ()
        batches.append(batch)
    shuffle(batches, random_for(seed, "batch order", epoch), is_stopped)
    micro_batches = []
    draw = (epoch - 1) * plan.samples_per_epoch
    for number, ((width, height), items) in enumerate(batches):
        if number % _BATCHES_AT_ONCE == 0 and is_stopped():
            return ()
        micro_batches.append(MicroBatch(width, height, items, tuple(range(draw, draw + len(items)))))
        draw += len(items)
    steps = [tuple(group) for group in _chunks(micro_batches, plan.accumulation)]
    remaining = plan.total_steps - (epoch - 1) * plan.steps_per_epoch
    return tuple(steps[: max(remaining, 0)])


def _epoch_batches(
    plan: Plan, seed: int, epoch: int, is_stopped: Callable[[], bool]
) -> Iterator[tuple[Size, tuple[int, ...]]]:
    """The epoch's micro-batches, bucket by bucket, with the samples of each bucket shuffled."""
    quotas = {(bucket.width, bucket.height): bucket.regularisation_count for bucket in plan.buckets}
    for size, items in group_by_bucket(plan.placements).items():
        generator = random_for(seed, "sample order", epoch, *size)
        to_learn, regularisation = split_regularisation(plan.dataset, items)
        samples = [item for item in to_learn for _ in range(plan.repeats[item])]
        if quotas[size]:
            weights = [folder_repeats(plan.dataset, item) for item in regularisation]
            counts = draw_systematically(weights, quotas[size], generator)
            samples += [item for item, n in zip(regularisation, counts, strict=True) for _ in range(n)]
        shuffle(samples, generator, is_stopped)
        for group in _chunks(samples, plan.batch_size):
            yield size, tuple(group)


# --- counting -----------------------------------------------------------------------------------


def ceil_div(number: int, divisor: int) -> int:
    """number / divisor, rounded up."""
    return -(-number // divisor)


def _chunks(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def group_by_bucket(placements: Sequence[Placement]) -> dict[Size, list[int]]:
    """Bucket size → its items; sizes sorted, items in their order."""
    members: dict[Size, list[int]] = {}
    for item, placement in enumerate(placements):
        members.setdefault((placement.width, placement.height), []).append(item)
    return dict(sorted(members.items()))


def split_regularisation(dataset: Dataset, items: Sequence[int]) -> tuple[list[int], list[int]]:
    """(items to learn, items of regularisation folders)."""
    to_learn = [item for item in items if not is_regularisation(dataset, item)]
    return to_learn, [item for item in items if is_regularisation(dataset, item)]


def folder_repeats(dataset: Dataset, item: int) -> int:
    """The repeats of an item's folder."""
    return dataset.concepts[dataset.items[item].concept].repeats
