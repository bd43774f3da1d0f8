"""The validation split: images kept from training, so that the loss on them shows whether the LoRA memorises."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from lib_lora_train.core.errors import Problem
from lib_lora_train.core.seeding import random_for
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.folder_names import join_names
from lib_lora_train.dataset.leave_out import select_items
from lib_lora_train.dataset.scan import Dataset


def split_validation(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(training set, validation set): validation gets `share` (0…0.5) of every folder, at least one image.

    Regularisation folders are not split. The choice depends on the seed and the images' contents, so copies of an
    image stay together, and moving the folder or adding images changes little. A folder with one image, or copies of
    one, gives none to validation.
    """
    if not share:
        return dataset, dataclasses.replace(dataset, items=(), problems=())
    chosen = {item for number in range(len(dataset.concepts)) for item in _choose_items(dataset, number, share, seed)}
    training = select_items(dataset, [number for number in range(len(dataset.items)) if number not in chosen])
    validation = select_items(dataset, sorted(chosen))
    return training, dataclasses.replace(validation, problems=())


def report_validation_split(validation: Dataset, share: float) -> tuple[Problem, ...]:
    """Which images are used for validation, or why none can be; nothing if `share` is 0."""
    if not share:
        return ()
    if not validation.items:
        text = "every folder has only one image, so none can be kept for validation."
        return (Problem("warning", "validation_share", text),)
    names = join_names([item.image.path.name for item in validation.items])
    kept = count(len(validation.items), "image is", "images are")
    text = f"{kept} not trained on; the loss there is measured after each epoch: {names}."
    return (Problem("hint", "validation_share", text),)


def _choose_items(dataset: Dataset, concept: int, share: float, seed: int) -> list[int]:
    """The items of one folder that go to validation."""
    if dataset.concepts[concept].is_regularisation:
        return []
    by_content: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(dataset.items):
        if item.concept == concept:
            by_content[item.image.content_hash].append(number)
    order = sorted(by_content, key=lambda content: random_for(seed, f"validation {content}").random())
    count = max(1, round(share * len(order))) if len(order) > 1 else 0
    return [number for content in order[:count] for number in by_content[content]]
