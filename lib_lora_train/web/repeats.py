"""Repeats that show every concept about equally often."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.repeats import MIN_SAMPLES_PER_CONCEPT, balanced_repeats

if TYPE_CHECKING:
    from lib_lora_train.dataset.scan import Dataset, ScannedConcept

RULE = (
    "Sets repeats so that every concept is shown equally often per epoch: as often as the largest one has images, "
    f"and at least {MIN_SAMPLES_PER_CONCEPT} times (guides recommend 100 to 400). Regularisation images are left alone."
)


def balanced_concepts(concepts: Sequence[Concept], dataset: Dataset) -> tuple[Concept, ...]:
    """The concepts with balanced repeats. A concept with kohya-style sub-folders becomes one concept per sub-folder."""
    own = [found for found in dataset.concepts if not found.is_regularisation]
    repeats = dict(zip([f.folder for f in own], balanced_repeats([f.image_count for f in own]), strict=True))
    balanced: list[Concept] = []
    for concept in concepts:
        folders = [found.folder for found in scanned_folders(concept, dataset) if found.folder in repeats]
        if concept.is_regularisation or not folders:
            balanced.append(concept)
        else:
            balanced += [_with(concept, folder, repeats[folder]) for folder in folders]
    return tuple(balanced)


def scanned_folders(concept: Concept, dataset: Dataset) -> tuple[ScannedConcept, ...]:
    """The folders with images of a concept: its own folder, or its kohya-style sub-folders."""
    root = user_path(concept.folder).resolve()
    return tuple(f for f in dataset.concepts if root in (f.folder.resolve(), f.folder.resolve().parent))


def _with(concept: Concept, folder: Path, repeats: int) -> Concept:
    is_root = user_path(concept.folder).resolve() == folder.resolve()
    values = {"repeats": repeats} if is_root else {"repeats": repeats, "folder": str(folder)}
    return Concept(**{**vars(concept), **values})
