"""What training guides warn of, checked before the start: words, showings per image, size and variety of the dataset.

Each finding has a remedy where a setting can solve it. Concepts that are not in the config are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.image_sizes import SMALLEST_SD_PX
from lib_lora_train.core.wording import count
from lib_lora_train.core.words import has_word
from lib_lora_train.dataset.augmentation import find_asymmetric_word
from lib_lora_train.dataset.caption_augmentation import make_caption_rule
from lib_lora_train.dataset.captions import split_tags
from lib_lora_train.dataset.folder_names import folder_name_to_words, parse_kohya_name
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.scan import Item, ScannedConcept

MIN_SHOWINGS, MAX_SHOWINGS = 25, 200
"""Per image and run: guides give 25 to 150, about 100 for a character, 30 to 40 for a style; at 200 they see copies."""
_CHARACTER_SHOWINGS, _STYLE_SHOWINGS = 100, 35
_STYLE_IMAGES = 50  # guides: a style has 50 to 200 images, a character 15 to 50
_LARGE_SET = 300  # images; from here on guides speak of fine-tuning, with fewer showings
_FEW_IMAGES = 5
_HELD_OUT_IMAGES, _HELD_OUT_SHARE = 50, 0.1  # with this many images or more, a tenth can be spared
_GENERAL_NAMES = re.compile(r"(img|image|images|data|dataset|train|training|pic\w*|photos?|new folder|\W*)")


@dataclass(frozen=True)
class _Learnt:
    """One folder to learn: the number of its concept in the config (from 1), and its images."""

    number: int
    scanned: ScannedConcept
    items: tuple[tuple[int, Item], ...]

    @property
    def settings(self) -> Concept:
        return self.scanned.settings

    def problem(self, level: Any, name: str, text: str, **remedy: Any) -> Problem:
        """A problem at a setting of the concept; `remedy` are new values of its settings."""
        values = tuple((f"concepts[{self.number}].{key}", value) for key, value in remedy.items())
        return Problem(level, f"concepts[{self.number}].{name}", text, values)


def check_guides(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    """What guides would warn of in a plan, concept by concept."""
    for concept in _learnt_concepts(plan, config):
        yield from _check_trigger(concept, config)
        yield from _check_class_word(concept, config)
        yield from _check_flip(concept)
        if config.resolution >= SMALLEST_SD_PX:
            yield from _check_showings(concept, plan, config)
            yield from _check_images(concept)
    if config.resolution >= SMALLEST_SD_PX:
        yield from _check_held_out(plan, config)


def _learnt_concepts(plan: Plan, config: TrainConfig) -> Iterator[_Learnt]:
    for number, scanned in enumerate(plan.dataset.concepts):
        if scanned.is_regularisation or scanned.settings not in config.concepts:
            continue
        items = tuple((n, item) for n, item in enumerate(plan.dataset.items) if item.concept == number)
        if items:
            yield _Learnt(config.concepts.index(scanned.settings) + 1, scanned, items)


# --- words ------------------------------------------------------------------------------------------


def _full_captions(concept: _Learnt, config: TrainConfig) -> list[str]:
    """The captions with prefix and suffix."""
    rule = make_caption_rule(config, concept.scanned.trigger, concept.settings)
    return [f"{rule.prefix} {item.caption} {rule.suffix}" for _, item in concept.items]


def _check_trigger(concept: _Learnt, config: TrainConfig) -> Iterator[Problem]:
    """No trigger, and no word in the captions that could be one."""
    if concept.scanned.trigger:
        return
    captions = _full_captions(concept, config)
    word = _folder_word(concept)
    if word and not any(has_word(caption, word) for caption in captions):
        text = (
            f"is empty, and the folder's word {word!r} is in none of its {count(len(captions), 'caption')}: the LoRA "
            f"will not respond to it. Set the trigger to {word}."
        )
        yield concept.problem("warning", "trigger", text, trigger=word)
    elif not word and not _common_words(captions):
        name = _suggest_trigger(concept, config)
        text = (
            "is empty, and no word is in all captions, so prompts have no word for the concept. A style can do "
            f"without. For a subject, use a rare word such as {name}."
        )
        yield concept.problem("hint", "trigger", text, trigger=name)


def _folder_word(concept: _Learnt) -> str:
    """The first word of an `N_words` folder, which guides use as the trigger; "" for other names."""
    name = parse_kohya_name(concept.scanned.folder.resolve().name)
    return (name[1].split() or [""])[0] if name else ""


def _common_words(captions: Sequence[str]) -> set[str]:
    """The tags, and the words of sentences, that all captions share."""
    per_caption = [{word.lower() for tag in split_tags(text) for word in (tag, *tag.split())} for text in captions]
    small = {"a", "an", "the", "of", "in", "on", "and", "with", "at", "is"}
    return set.intersection(*per_caption) - small


def _suggest_trigger(concept: _Learnt, config: TrainConfig) -> str:
    """A word for prompts: from the folder's name or the output name if they are names, else a rare word."""
    names = [concept.scanned.folder.resolve().name]
    names += [config.output_name] if config.output_name != TrainConfig().output_name else []
    for words in (folder_name_to_words(name).lower() for name in names):
        is_word = words.isascii() and words.replace(" ", "").isalnum()
        if is_word and not _GENERAL_NAMES.fullmatch(words):
            return words.split()[0]
    return "ohwx"


def _check_class_word(concept: _Learnt, config: TrainConfig) -> Iterator[Problem]:
    word = concept.settings.class_word.strip()
    captions = _full_captions(concept, config)
    is_used = config.prior_preservation == "class"  # in the trigger's place, whatever the captions are
    if not word or is_used or any(has_word(caption, word) for caption in captions):
        return
    suffix = (concept.settings.own_suffix or config.caption_suffix).rstrip(" ,")
    text = (
        f"{word!r} is in none of the {count(len(captions), 'caption')}: it is only used for images without one. "
        "Guides put it into every caption, as the class that the trigger belongs to."
    )
    yield concept.problem("hint", "class_word", text, own_suffix=f"{suffix}, {word}")


def _check_flip(concept: _Learnt) -> Iterator[Problem]:
    """Mirrored images whose captions name something asymmetric."""
    if not concept.settings.flip:
        return
    named = [(item, word) for _, item in concept.items if (word := find_asymmetric_word(item.caption))]
    if named:
        item, word = named[0]
        text = (
            f"mirrors images whose captions name something asymmetric: {len(named)} of {len(concept.items)}, "
            f"{item.image.path.name} ({word!r}) first. The LoRA learns it both ways round. Turn flip off for them."
        )
        yield concept.problem("warning", "flip", text, flip=False)


# --- how often, how many ----------------------------------------------------------------------------


def _check_showings(concept: _Learnt, plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    """How often the run shows each image."""
    per_epoch = sum(plan.repeats[number] for number, _ in concept.items) / max(1, concept.scanned.image_count)
    epochs = plan.total_steps / plan.steps_per_epoch
    showings = per_epoch * epochs
    images = concept.scanned.image_count
    is_few = showings < MIN_SHOWINGS and images <= _LARGE_SET and not config.max_steps
    if not is_few and showings <= MAX_SHOWINGS:
        return
    target = _STYLE_SHOWINGS if images > _STYLE_IMAGES else _CHARACTER_SHOWINGS
    remedy = _rescale(concept, config, plan, target / showings)
    what = (
        "too few for the LoRA to learn much" if is_few else "so often that the LoRA copies images instead of learning"
    )
    text = (
        f"shows each image of {concept.scanned.name} {count(round(showings), 'time')}, {what}. Guides use about "
        f"{_CHARACTER_SHOWINGS} for a character and 30 to 40 for a style."
    )
    yield Problem("warning", "epochs", text, remedy)


def _rescale(concept: _Learnt, config: TrainConfig, plan: Plan, factor: float) -> tuple[tuple[str, Any], ...]:
    """The settings to multiply by about `factor`: repeats where they are free to choose, else epochs."""
    if plan.total_steps < plan.steps_per_epoch * config.epochs:  # max_steps ends the run
        epochs = round(plan.total_steps / plan.steps_per_epoch * factor)
        return (("epochs", max(1, epochs)), ("max_steps", 0))
    is_named = concept.settings.repeats is None and parse_kohya_name(concept.scanned.folder.resolve().name) is not None
    repeats = concept.scanned.repeats
    wanted = round(repeats * factor)
    if len(config.concepts) == 1 and not is_named and not config.balance_repeats and 1 <= wanted <= 100:
        return ((f"concepts[{concept.number}].repeats", wanted),)
    return (("epochs", max(1, min(1000, round(config.epochs * factor)))),)


def _check_images(concept: _Learnt) -> Iterator[Problem]:
    """Too few images, or captions that cannot tell them apart."""
    images = concept.scanned.image_count
    if images < _FEW_IMAGES:
        what = "its background, pose and light" if images == 1 else "their backgrounds, poses and light"
        text = (
            f"has only {count(images, 'image')}, so the LoRA learns {what} too. Guides "
            "use 15 to 50 varied images for a subject and 50 to 200 for a style."
        )
        yield concept.problem("warning", "folder", text)
    elif not concept.settings.only_class_word and len({item.caption for _, item in concept.items}) == 1:
        text = (
            f"has {count(images, 'image')} with the same caption, so whatever recurs in them is learnt as one. "
            "Describe in the captions what prompts should be able to change, for example with Auto-tag."
        )
        yield concept.problem("hint", "folder", text)


def _check_held_out(plan: Plan, config: TrainConfig) -> Iterator[Problem]:
    """Enough images to set some aside, without which no loss shows overfitting."""
    images = sum(not plan.is_regularisation(item) for item in range(len(plan.dataset.items)))
    if images >= _HELD_OUT_IMAGES and not config.validation_share:
        text = (
            f"is 0. {count(images, 'image')} are enough to set a tenth aside: the loss on images that are not trained "
            "on is the only one that rises when the LoRA begins to memorise."
        )
        yield Problem("hint", "validation_share", text, (("validation_share", _HELD_OUT_SHARE),))
