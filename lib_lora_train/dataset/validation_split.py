"""Images kept from training, so that the loss on them tells learning from memorising."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict

from lib_lora_train.core.errors import Problem
from lib_lora_train.core.seeding import random_for
from lib_lora_train.dataset.folder_names import join_names
from lib_lora_train.dataset.scan import Dataset


def split_validation(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(what is trained on, what is kept from it): `share` (0…0.5) of every folder but regularisation, at least one.

    Which ones are kept depends on the seed and the images' contents, so equal images stay together, and moving the
    folder or adding images changes little. A folder with one image, or copies of one, keeps none.
    """
    if not share:
        return dataset, dataclasses.replace(dataset, items=(), problems=())
    kept = {item for number in range(len(dataset.concepts)) for item in _kept(dataset, number, share, seed)}
    parts = [number for number in range(len(dataset.items)) if number not in kept], sorted(kept)
    own, held = (_part(dataset, numbers) for numbers in parts)
    return own, dataclasses.replace(held, problems=())


def report_validation_split(held: Dataset, share: float) -> tuple[Problem, ...]:
    """Which images are kept, or that there are none to keep; nothing where none are to be."""
    if not share:
        return ()
    if not held.items:
        text = "every folder holds one image only, so none can be kept from training and nothing is measured."
        return (Problem("warning", "validation_share", text),)
    names = join_names([item.image.path.name for item in held.items])
    text = f"{len(held.items)} images are not trained on but measured after each epoch: {names}."
    return (Problem("hint", "validation_share", text),)


def _kept(dataset: Dataset, concept: int, share: float, seed: int) -> list[int]:
    """The items that a folder gives up."""
    if dataset.concepts[concept].is_regularisation:
        return []
    alike: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(dataset.items):
        if item.concept == concept:
            alike[item.image.content_hash].append(number)
    order = sorted(alike, key=lambda content: random_for(seed, f"validation {content}").random())
    wanted = max(1, round(share * len(order))) if len(order) > 1 else 0
    return [number for content in order[:wanted] for number in alike[content]]


def _part(dataset: Dataset, numbers: list[int]) -> Dataset:
    items = tuple(dataset.items[number] for number in numbers)
    counts = Counter(concept for concept, _ in {(item.concept, item.image.path) for item in items})
    concepts = (
        dataclasses.replace(concept, image_count=counts[number]) for number, concept in enumerate(dataset.concepts)
    )
    return dataclasses.replace(dataset, items=items, concepts=tuple(concepts))
