"""Judgement of the folders with images and what is done with them; `validate` collects all."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import Problem

_LEAST_RESOLUTION, _MOST_RESOLUTION = 64, 2048
_STRONG_JITTER = 0.2
_HIGH_DROPOUT = 0.3


def validate_concepts(config: TrainConfig) -> Iterator[Problem]:
    """Every finding about the concepts."""
    if not config.concepts:
        yield Problem("error", "concepts", "no folder with images is given. Name one to train on.")
    elif all(concept.is_regularisation for concept in config.concepts):
        text = "all folders hold regularisation images; there is nothing to learn. Add a folder."
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
        yield Problem("error", f"{where}.folder", "is empty. Name the folder with the images.")
    if concept.is_regularisation and concept.trigger:
        text = "is not used: regularisation images never get the trigger."
        yield Problem("hint", f"{where}.trigger", text)


def _class_word(concept: Concept, where: str) -> Iterator[Problem]:
    if concept.only_class_word and not (concept.class_word or concept.trigger):
        text = "needs a class_word or trigger; without, the folder's name is the caption of all its images."
        yield Problem("warning", f"{where}.only_class_word", text)


def _captions(concept: Concept, where: str) -> Iterator[Problem]:
    for name in ("own_caption_dropout", "own_tag_dropout"):
        share = getattr(concept, name)
        if share is not None and share > _HIGH_DROPOUT:
            text = f"{share:g} hides much of what is seen in this folder's images. 0.05 to 0.2 is usual."
            yield Problem("warning", f"{where}.{name}", text)
    if concept.own_prefix and concept.own_prefix.strip(" ,") == concept.trigger:
        text = "is the trigger, which is put first anyway: it would stand there twice. Leave one of them out."
        yield Problem("warning", f"{where}.own_prefix", text)


def _augmentation(concept: Concept, where: str) -> Iterator[Problem]:
    changes = concept.random_crop or concept.colour_jitter
    if concept.augment_variants != Concept().augment_variants and not changes:
        text = "has no effect while random_crop is off and colour_jitter 0."
        yield Problem("hint", f"{where}.augment_variants", text)
    if concept.colour_jitter > _STRONG_JITTER:
        text = f"{concept.colour_jitter:g} is much: images come out in odd colours. 0.05 to 0.15 is usual."
        yield Problem("warning", f"{where}.colour_jitter", text)
    colours = [name.strip() for name in concept.alpha_background.split(",") if name.strip()]
    for name in colours:
        if not re.fullmatch(r"[A-Za-z]+|#(?:[0-9A-Fa-f]{3}){1,2}", name):
            text = f"{name!r} is no colour. Write a name such as white or grey, or #808080."
            yield Problem("error", f"{where}.alpha_background", text)
    if concept.tag_background and any(name.startswith("#") for name in colours):
        text = "tags colours by their names, and numbers such as #808080 have none: those stay untagged."
        yield Problem("hint", f"{where}.tag_background", text)
    if concept.use_masks and concept.is_regularisation:
        text = "hides the surroundings that regularisation images are there to keep. Switch it off here."
        yield Problem("warning", f"{where}.use_masks", text)


def _sides(concept: Concept, config: TrainConfig, where: str) -> Iterator[Problem]:
    for text in concept.resolutions.replace(",", " ").split():
        side = int(text) if text.isdigit() else 0
        if not _LEAST_RESOLUTION <= side <= _MOST_RESOLUTION:
            message = f"{text!r} is no side of {_LEAST_RESOLUTION} to {_MOST_RESOLUTION} px. Write 512 or 512 768."
            yield Problem("error", where, message)
        elif side % config.bucket_step:
            nearest = max(side // config.bucket_step, 1) * config.bucket_step
            message = (
                f"{side} is not a multiple of bucket_step {config.bucket_step}; the square bucket has {nearest} px."
            )
            yield Problem("warning" if config.enable_buckets else "error", where, message)
