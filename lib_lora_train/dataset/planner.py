"""Makes the plan of a run from a dataset, before anything slow starts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from lib_lora_train.config.concept_lists import parse_resolution, split_resolutions
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.augmentation import View, make_views
from lib_lora_train.dataset.buckets import Placement, make_bucket_rule, place_image
from lib_lora_train.dataset.leave_out import leave_out
from lib_lora_train.dataset.plan import (
    BucketSummary,
    Plan,
    Size,
    ceil_div,
    folder_repeats,
    group_by_bucket,
    is_regularisation,
    split_regularisation,
)
from lib_lora_train.dataset.plan_warnings import check_plan, report_balancing
from lib_lora_train.dataset.repeats import apportion, balanced_repeats
from lib_lora_train.dataset.scan import Dataset
from lib_lora_train.dataset.validation_split import report_validation_split, split_validation


def make_plan(dataset: Dataset, config: TrainConfig) -> Plan:
    """The plan for a dataset without what the settings leave out; DataError if no image to learn remains."""
    dataset, left_out = leave_out(dataset, config)
    if all(is_regularisation(dataset, item) for item in range(len(dataset.items))):
        raise DataError("There are only regularisation images. Add a folder with images to learn.")
    training_set, validation_set = split_validation(dataset, config.validation_share, config.seed)
    plan = _make_plan(training_set, config)
    if validation_set.items:
        validation = _make_plan(validation_set, config)
        first_views = validation.views[: len(validation.dataset.items)]
        plan = dataclasses.replace(plan, validation=dataclasses.replace(validation, views=first_views, warnings=()))
    split_report = report_validation_split(validation_set, config.validation_share)
    return dataclasses.replace(plan, warnings=(*left_out, *split_report, *plan.warnings))


def _make_plan(dataset: Dataset, config: TrainConfig) -> Plan:
    dataset = expand_resolutions(dataset)
    before = dataset
    if config.balance_repeats:
        dataset = balance_dataset(dataset)
    placements = tuple(
        place_image(item.image.width, item.image.height, make_bucket_rule(config, item.resolution))
        for item in dataset.items
    )
    members = group_by_bucket(placements)
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
        views=_all_views(dataset, placements),
    )
    return dataclasses.replace(plan, warnings=(*report_balancing(before, dataset), *check_plan(plan, config)))


def balance_dataset(dataset: Dataset) -> Dataset:
    """The dataset with repeats that show all concepts except regularisation about equally often."""
    counts = Counter(item.concept for item in dataset.items)
    to_learn = [n for n, concept in enumerate(dataset.concepts) if not concept.is_regularisation and counts[n]]
    repeats = dict(zip(to_learn, balanced_repeats([counts[n] for n in to_learn]), strict=True))
    concepts = (
        dataclasses.replace(concept, repeats=repeats.get(number, concept.repeats))
        for number, concept in enumerate(dataset.concepts)
    )
    return dataclasses.replace(dataset, concepts=tuple(concepts))


def expand_resolutions(dataset: Dataset) -> Dataset:
    """The dataset with each item once per resolution of its concept; items that have a resolution stay as they are."""
    items = []
    for item in dataset.items:
        sides = (
            parse_resolutions(dataset.concepts[item.concept].settings) if not item.resolution else (item.resolution,)
        )
        items += [dataclasses.replace(item, resolution=side) for side in sides or (0,)]
    return dataclasses.replace(dataset, items=tuple(items))


def parse_resolutions(concept: Concept) -> tuple[int, ...]:
    """The resolutions of a concept in px, empty for that of the run; DataError if one is not a number of px."""
    try:
        return tuple(dict.fromkeys(map(parse_resolution, split_resolutions(concept.resolutions))))
    except ValueError as error:
        raise DataError(f"{concept.folder}: resolutions: {error}") from None


def _all_views(dataset: Dataset, placements: Sequence[Placement]) -> tuple[View, ...]:
    per_item = [
        make_views(
            number,
            placement,
            dataset.concepts[item.concept].settings,
            content=item.image.content_hash,
            has_alpha=item.image.has_alpha,
        )
        for number, (item, placement) in enumerate(zip(dataset.items, placements, strict=True))
    ]
    return (*(views[0] for views in per_item), *(view for views in per_item for view in views[1:]))


def _regularisation_quotas(dataset: Dataset, members: Mapping[Size, Sequence[int]]) -> dict[Size, int]:
    """Regularisation samples per epoch and bucket, in total as many as there are samples to learn.

    They are divided among the buckets once per run, so that every epoch has the same number of steps; which images
    fill a bucket's quota is drawn for each epoch.
    """
    total = sum(
        folder_repeats(dataset, item) for items in members.values() for item in split_regularisation(dataset, items)[0]
    )
    weights = {
        size: sum(folder_repeats(dataset, item) for item in split_regularisation(dataset, items)[1])
        for size, items in members.items()
    }
    sizes = [size for size, weight in weights.items() if weight]
    if not sizes:
        return {}
    return dict(zip(sizes, apportion(total, [weights[size] for size in sizes]), strict=True))


def _repeats(dataset: Dataset, members: Mapping[Size, Sequence[int]], quotas: Mapping[Size, int]) -> tuple[int, ...]:
    """Per item, the samples per epoch; for a regularisation image the maximum."""
    repeats = [folder_repeats(dataset, item) for item in range(len(dataset.items))]
    for size, items in members.items():
        regularisation = split_regularisation(dataset, items)[1]
        whole = sum(repeats[item] for item in regularisation)
        for item in regularisation:
            repeats[item] = ceil_div(quotas[size] * folder_repeats(dataset, item), whole)
    return tuple(repeats)


def _summary(dataset: Dataset, size: Size, items: Sequence[int], *, quota: int, batch_size: int) -> BucketSummary:
    count = quota + sum(folder_repeats(dataset, item) for item in split_regularisation(dataset, items)[0])
    fill = count - (ceil_div(count, batch_size) - 1) * batch_size if count else 0
    return BucketSummary(*size, len(items), count, fill, quota)
