"""Leaves tags and images out of a run by its settings; the files in the folders do not change.

So a run can be repeated without one tag or image, and both can be compared.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import DataError, Problem
from lib_lora_train.core.tag_patterns import make_path_matcher, make_tag_matcher
from lib_lora_train.core.wording import count, did_you_mean
from lib_lora_train.dataset.captions import split_tags, trigger_tags
from lib_lora_train.dataset.folder_names import join_names
from lib_lora_train.dataset.scan import Dataset, Item

_WEIGHTED = re.compile(r"[(\[]+(.*?)(:[\d.]+)?[)\]]+")


def leave_out(dataset: Dataset, config: TrainConfig) -> tuple[Dataset, tuple[Problem, ...]]:
    """The dataset without the tags and images that the settings leave out, and what that changed.

    A warning names each entry that fits nothing. DataError if no image is left.
    """
    if not (config.leave_out_tags or config.leave_out_images):
        return dataset, ()
    problems: list[Problem] = []
    if config.leave_out_images:
        has_images = bool(dataset.items)
        dataset, problems = _without_images(dataset, config.leave_out_images)
        if has_images and not dataset.items:
            raise DataError("leave_out_images leaves no image to train on. Remove an entry.")
    if config.leave_out_tags:
        dataset, about_tags = _without_tags(dataset, config)
        problems += about_tags
    return dataset, tuple(problems)


def select_items(dataset: Dataset, numbers: Sequence[int]) -> Dataset:
    """The dataset with these items only; each folder's `image_count` is that of its remaining images."""
    items = tuple(dataset.items[number] for number in numbers)
    counts = Counter(concept for concept, _ in {(item.concept, item.image.path) for item in items})
    concepts = (
        dataclasses.replace(concept, image_count=counts[number]) for number, concept in enumerate(dataset.concepts)
    )
    return dataclasses.replace(dataset, items=items, concepts=tuple(concepts))


# --- images -------------------------------------------------------------------------------------


def _without_images(dataset: Dataset, patterns: Sequence[str]) -> tuple[Dataset, list[Problem]]:
    paths = [str(item.image.path) for item in dataset.items]
    found = {pattern: _numbers(make_path_matcher(pattern), paths) for pattern in patterns}
    gone = set().union(*found.values())
    names = [item.image.path.name for item in dataset.items]
    problems = [_fits_nothing("leave_out_images", pattern, "image", names) for pattern, fit in found.items() if not fit]
    if gone:
        listed = join_names([names[number] for number in sorted(gone)])
        text = f"{count(len(gone), 'image')} {'is' if len(gone) == 1 else 'are'} left out: {listed}."
        problems.append(Problem("hint", "leave_out_images", text))
    return select_items(dataset, [number for number in range(len(paths)) if number not in gone]), problems


def _numbers(matches: Callable[[str], bool], texts: Sequence[str]) -> set[int]:
    return {number for number, text in enumerate(texts) if matches(text)}


# --- tags ---------------------------------------------------------------------------------------


def _without_tags(dataset: Dataset, config: TrainConfig) -> tuple[Dataset, list[Problem]]:
    rules = [_TagRule(config, concept.trigger) for concept in dataset.concepts]
    items = []
    for item in dataset.items:
        rule = rules[item.concept]
        items.append(
            dataclasses.replace(item, caption=rule.apply(item.caption), lines=tuple(map(rule.apply, item.lines)))
        )
    known = sum((rule.known for rule in rules), Counter[str]())
    problems = [*_report_tags(config.leave_out_tags, dataset, rules, known), *_report_emptied(items)]
    return dataclasses.replace(dataset, items=tuple(items)), problems


class _TagRule:
    """Leaves tags out of captions with this trigger, which stays. `known` counts the tags that it has seen."""

    def __init__(self, config: TrainConfig, trigger: str) -> None:
        self.known: Counter[str] = Counter()
        self._matchers = {pattern: make_tag_matcher((pattern,)) for pattern in config.leave_out_tags}
        self._trigger = trigger_tags(trigger)
        self._separator = config.keep_tokens_separator
        self._is_weighted = config.weighted_captions
        self._fitting: dict[str, tuple[str, ...]] = {}

    def apply(self, caption: str) -> str:
        """The caption without these tags; one that has none of them is not changed at all."""
        sections = caption.split(self._separator) if self._separator else [caption]
        tags = [self._split(section) for section in sections]
        kept = [[tag for tag in section if not self.fitting(tag)] for section in tags]
        self.known.update(tag for section in tags for tag in section)
        return caption if kept == tags else f" {self._separator} ".join(map(", ".join, kept)).strip()

    def fitting_any(self, caption: str) -> set[str]:
        """The patterns that one of the caption's tags fits."""
        sections = caption.split(self._separator) if self._separator else [caption]
        return {pattern for section in sections for tag in self._split(section) for pattern in self.fitting(tag)}

    def fitting(self, tag: str) -> tuple[str, ...]:
        """The patterns that a tag fits; none for a tag of the trigger."""
        if tag not in self._fitting:
            weighted = _WEIGHTED.fullmatch(tag) if self._is_weighted else None
            name = weighted[1] if weighted else tag
            fit = (pattern for pattern, matches in self._matchers.items() if matches(name))
            self._fitting[tag] = () if tag.lower() in self._trigger else tuple(fit)
        return self._fitting[tag]

    def _split(self, section: str) -> list[str]:
        return split_tags(section, "{}()[]" if self._is_weighted else "{}")


def _report_tags(
    patterns: Sequence[str], dataset: Dataset, rules: Sequence[_TagRule], known: Counter[str]
) -> Iterator[Problem]:
    gone = Counter(pattern for item in dataset.items for pattern in rules[item.concept].fitting_any(item.caption))
    for pattern in dict.fromkeys(patterns):
        if not gone[pattern]:
            yield _fits_nothing("leave_out_tags", pattern, "tag", [tag for tag, _ in known.most_common()])
    if gone:
        parts = join_names([f"{pattern} ({count(number, 'caption')})" for pattern, number in gone.most_common()])
        yield Problem("hint", "leave_out_tags", f"Left out of this run's captions: {parts}.")


def _report_emptied(items: Sequence[Item]) -> Iterator[Problem]:
    """A hint if captions are empty; with a trigger none is."""
    names = [item.image.path.name for item in items if not item.caption]
    if names:
        yield Problem("hint", "leave_out_tags", f"The captions of {join_names(names)} are empty without these tags.")


def _fits_nothing(setting: str, pattern: str, what: str, known: Sequence[str]) -> Problem:
    return Problem("warning", setting, f"{pattern!r} fits no {what} of the dataset.{did_you_mean(pattern, known)}")
