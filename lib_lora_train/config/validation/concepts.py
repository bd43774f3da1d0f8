"""Validation of the concepts: their folders, captions and augmentation."""

from __future__ import annotations

from collections.abc import Iterator

from lib_lora_train.config.concept_lists import parse_resolution, split_colours, split_resolutions
from lib_lora_train.config.problems import HIGH_DROPOUT, TRIGGER_TWICE, off_step
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import Problem

_STRONG_JITTER = 0.2


def validate_concepts(config: TrainConfig) -> Iterator[Problem]:
    """All problems of the concepts."""
    if not config.concepts:
        yield Problem("error", "concepts", "no image folder is given. Add the folder to train on.")
    elif all(concept.is_regularisation for concept in config.concepts):
        text = "all folders contain regularisation images, so there is nothing to learn. Add a folder to train on."
        yield Problem("error", "concepts", text)
    for number, concept in enumerate(config.concepts, start=1):
        yield from _concept(concept, f"concepts[{number}]")
        yield from _class_word(concept, f"concepts[{number}]")
        yield from _captions(concept, f"concepts[{number}]")
        yield from _augmentation(concept, f"concepts[{number}]")
        yield from _sides(concept, config, f"concepts[{number}].resolutions")
    seen: dict[str, int] = {}
    for number, concept in enumerate(config.concepts, start=1):
        folder = concept.folder.rstrip("/\\")
        if folder and seen.setdefault(folder, number) != number:
            text = f"is also the folder of concepts[{seen[folder]}]."
            yield Problem("warning", f"concepts[{number}].folder", text)


def _concept(concept: Concept, where: str) -> Iterator[Problem]:
    if not concept.folder:
        yield Problem("error", f"{where}.folder", "is empty. Enter the folder with the images.")
    if concept.is_regularisation and concept.trigger:
        text = "is ignored: regularisation images never get the trigger."
        yield Problem("hint", f"{where}.trigger", text)


def _class_word(concept: Concept, where: str) -> Iterator[Problem]:
    if concept.only_class_word and not (concept.class_word or concept.trigger):
        text = "needs a class_word or trigger; without one, the folder name becomes the caption of all its images."
        yield Problem("warning", f"{where}.only_class_word", text)


def _captions(concept: Concept, where: str) -> Iterator[Problem]:
    for name in ("own_caption_dropout", "own_tag_dropout"):
        share = getattr(concept, name)
        if share is not None and share > HIGH_DROPOUT:
            text = f"{share:g} drops too much of this folder's captions. 0.05 to 0.2 is usual."
            yield Problem("warning", f"{where}.{name}", text)
    if concept.own_prefix and concept.own_prefix.strip(" ,") == concept.trigger:
        yield Problem("warning", f"{where}.own_prefix", TRIGGER_TWICE)


def _augmentation(concept: Concept, where: str) -> Iterator[Problem]:
    changes = concept.random_crop or concept.colour_jitter
    if concept.augment_variants != Concept().augment_variants and not changes:
        text = "has no effect while random_crop is off and colour_jitter 0."
        yield Problem("hint", f"{where}.augment_variants", text)
    if concept.colour_jitter > _STRONG_JITTER:
        text = f"{concept.colour_jitter:g} is high: generated images get odd colours. 0.05 to 0.15 is usual."
        yield Problem("warning", f"{where}.colour_jitter", text)
    colours: list[str] = []
    try:
        colours = split_colours(concept.alpha_background)
    except ValueError as error:
        yield Problem("error", f"{where}.alpha_background", str(error))
    if concept.tag_background and any(name.startswith("#") for name in colours):
        text = "adds colour names; codes such as #808080 have none and are not added."
        yield Problem("hint", f"{where}.tag_background", text)
    if concept.use_masks and concept.is_regularisation:
        text = "ignores the surroundings, which regularisation images should preserve. Switch it off here."
        yield Problem("warning", f"{where}.use_masks", text)


def _sides(concept: Concept, config: TrainConfig, where: str) -> Iterator[Problem]:
    for text in split_resolutions(concept.resolutions):
        try:
            side = parse_resolution(text)
        except ValueError as error:
            yield Problem("error", where, str(error))
            continue
        if side % config.bucket_step:
            yield Problem("warning" if config.enable_buckets else "error", where, off_step(side, config.bucket_step))
