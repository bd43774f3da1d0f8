"""Our folders as a dataset file of sd-scripts: `[general]`, `[[datasets]]`, `[[datasets.subsets]]`.

sd-scripts reads exactly one folder per subset, so that a concept with `N_words` subfolders becomes one subset for each
of them. A concept with several resolutions, or with captions in one file, needs a separate dataset.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from lib_lora_train.config.concept_lists import parse_resolution, split_resolutions
from lib_lora_train.config.settings.concept import OWN_SHUFFLES
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.core.words import has_word
from lib_lora_train.dataset.buckets import make_bucket_rule
from lib_lora_train.dataset.caption_lists import caption_list_path
from lib_lora_train.dataset.data_folders import scan_concept_folders
from lib_lora_train.dataset.folder_names import parse_kohya_name
from lib_lora_train.formats.kohya.dataset import OWN_CAPTIONS
from lib_lora_train.formats.kohya.import_state import kohya_parameters
from lib_lora_train.formats.kohya.keys import FOLDER_SWITCHES

CAPTION_ARGUMENTS = (
    *("caption_extension", "caption_separator", "secondary_separator", "keep_tokens_separator", "enable_wildcard"),
    *("token_warmup_min", "token_warmup_step", "caption_dropout_every_n_epochs"),
)
"""Settings of captions that are the same for all folders."""

_IN_BOTH = {"own_shuffle": "shuffle_captions", "own_keep_tokens": "keep_tokens", "own_prefix": "caption_prefix"}
_IN_BOTH |= {"own_suffix": "caption_suffix", "own_caption_dropout": "caption_dropout", "own_tag_dropout": "tag_dropout"}
"""A folder's own setting → the run's, which it overrides."""


@dataclass(frozen=True)
class Subset:
    """One folder as sd-scripts trains it: a concept (its place from 0) with nothing left to the run's settings.

    `concept` has a folder without subfolders, its repeats, the words for images without a caption as `class_word`, one
    resolution, and its own settings for captions.
    """

    place: int
    concept: Concept


def read_subsets(config: TrainConfig) -> tuple[Subset, ...]:
    """The folders of the config in the order of the file: first those at the run's resolution, whose size it gets.

    Folders that cannot be read are taken as they are named.
    """
    found = [
        Subset(place, with_own_values(config, one))
        for place, concept in enumerate(config.concepts)
        for folder in _folders(config, concept)
        for one in _resolutions(config, folder)
    ]
    own_side = str(config.resolution_side)
    groups = list(dict.fromkeys(map(_group, sorted(found, key=lambda one: one.concept.resolutions != own_side))))
    return tuple(sorted(found, key=lambda one: groups.index(_group(one))))


def with_own_values(config: TrainConfig, concept: Concept) -> Concept:
    """The concept with the values of the run where it does not set them, so that two can be compared."""
    run = {own: getattr(config, name) for own, name in _IN_BOTH.items()}
    run["own_shuffle"] = OWN_SHUFFLES[1] if config.shuffle_captions else OWN_SHUFFLES[2]
    empty = {own: getattr(Concept(), own) for own in _IN_BOTH}
    values = {own: value for own, value in run.items() if getattr(concept, own) == empty[own]}
    return dataclasses.replace(concept, **values, resolutions=concept.resolutions or str(config.resolution_side))


def dataset_table(config: TrainConfig, subsets: Sequence[Subset]) -> dict[str, Any]:
    """The values of the dataset file, from subsets in its order."""
    differing = {key for key, own in OWN_CAPTIONS.items() if len({getattr(s.concept, own.name) for s in subsets}) > 1}
    shared = {key: _own_value(subsets[0].concept, key) for key in OWN_CAPTIONS if key not in differing}
    captions = {key: getattr(config, kohya_parameters()[key].name) for key in CAPTION_ARGUMENTS}
    datasets = [
        {**_sizes(config, side), "subsets": [_subset(one.concept, differing) for one in group]}
        for (side, _), group in itertools.groupby(subsets, _group)
    ]
    return {
        "general": {name: value for name, value in {**captions, **shared}.items() if value != ""},
        "datasets": datasets,
    }


def _group(subset: Subset) -> tuple[str, bool]:
    """What the subsets of a dataset have in common: resolution, and whether one file has their captions."""
    return subset.concept.resolutions, bool(subset.concept.caption_file)


def absolute_path(text: str) -> str:
    """A path that kohya's tools find from any folder; those of Windows stay as they are."""
    if not text.strip() or PureWindowsPath(text.strip()).is_absolute():
        return text
    return os.path.normpath(Path.cwd() / user_path(text))


def _folders(config: TrainConfig, concept: Concept) -> Iterator[Concept]:
    """The concept once for each folder that is trained on, with its repeats and the words for missing captions."""
    found = scan_concept_folders(concept).folders
    is_plain = config.missing_captions == "folder name"
    if concept.caption_file:
        path = str(caption_list_path(concept.caption_file, user_path(concept.folder)))
        concept = dataclasses.replace(concept, caption_file=absolute_path(path))
    if not found:
        name = re.split(r"[\\/]", concept.folder.rstrip("\\/"))[-1]
        repeats = concept.repeats or (parse_kohya_name(name) or (1, ""))[0]
        yield _with_words(concept, concept.class_word, folder=concept.folder, repeats=repeats, is_plain=is_plain)
    for folder in found:
        words = "" if concept.caption_file else folder.plain_words if is_plain else folder.words
        yield _with_words(concept, words, folder=str(folder.path), repeats=folder.repeats, is_plain=is_plain)


def _with_words(concept: Concept, words: str, *, folder: str, repeats: int, is_plain: bool) -> Concept:
    """The concept with the trigger in front of its words, where images without a caption get it here too."""
    trigger = "" if is_plain or concept.is_regularisation or concept.caption_file else concept.trigger.strip()
    if trigger and not has_word(words, trigger):
        words = f"{trigger} {words}".strip()
    return dataclasses.replace(concept, folder=absolute_path(folder), repeats=repeats, class_word=words)


def _resolutions(config: TrainConfig, concept: Concept) -> Iterator[Concept]:
    for side in split_resolutions(concept.resolutions) or [str(config.resolution_side)]:
        yield dataclasses.replace(concept, resolutions=str(parse_resolution(side)))


def _own_value(concept: Concept, key: str) -> Any:
    value = getattr(concept, OWN_CAPTIONS[key].name)
    return value == OWN_SHUFFLES[1] if key == "shuffle_caption" else value


def _sizes(config: TrainConfig, side: str) -> dict[str, Any]:
    """Batch size, resolution and buckets. sd-scripts refuses limits that leave the resolution out."""
    rule = make_bucket_rule(config, int(side))
    width, height = rule.size
    return {
        "batch_size": config.batch_size,
        "resolution": [width, height],
        "enable_bucket": config.enable_buckets,
        "min_bucket_reso": min(rule.min_side, width, height),
        "max_bucket_reso": max(rule.max_side, width, height),
        "bucket_reso_steps": config.bucket_step,
        "bucket_no_upscale": config.bucket_no_upscale,
    }


def _subset(concept: Concept, differing: set[str]) -> dict[str, Any]:
    """One folder: what is not at its default, and the settings for captions that differ between folders."""
    values: dict[str, Any] = {"image_dir": concept.folder, "num_repeats": concept.repeats}
    if concept.caption_file:
        values["metadata_file"] = concept.caption_file
    elif concept.class_word:
        values["class_tokens"] = concept.class_word
    if concept.is_regularisation and not concept.caption_file:
        values["is_reg"] = True
    switches = {name: all(getattr(concept, field) for field in fields) for name, fields in FOLDER_SWITCHES.items()}
    switches.pop("masked_loss")  # an argument, no key of a dataset file
    values |= {name: True for name, is_on in switches.items() if is_on}
    return {**values, **{key: _own_value(concept, key) for key in sorted(differing)}}
