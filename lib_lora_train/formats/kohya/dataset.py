"""A dataset file of sd-scripts: `[general]`, `[[datasets]]` and `[[datasets.subsets]]`, as folders and run settings.

A subset's value overrides its dataset's, and that the general one. Here most settings are for the whole run, so those
that differ from folder to folder cannot all be kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib_lora_train.config.parameters import parameters_of, parse_value
from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import ConfigError, Problem
from lib_lora_train.formats.kohya.import_state import (
    FACT,
    IgnoredKey,
    invalid,
    kohya_parameters,
    parse_flag,
    parse_sides,
    square_side,
    strip_value,
)
from lib_lora_train.formats.kohya.keys import ALIASES, DEFAULTS, FACTS, FOLDER_SWITCHES

_CONCEPT = {parameter.kohya: parameter for parameter in parameters_of(Concept) if parameter.kohya}
_OF_CONCEPT = {parameter.name: parameter for parameter in parameters_of(Concept)}
OWN_CAPTIONS = {
    "shuffle_caption": _OF_CONCEPT["own_shuffle"],
    "keep_tokens": _OF_CONCEPT["own_keep_tokens"],
    "caption_prefix": _OF_CONCEPT["own_prefix"],
    "caption_suffix": _OF_CONCEPT["own_suffix"],
    "caption_dropout_rate": _OF_CONCEPT["own_caption_dropout"],
    "caption_tag_dropout_rate": _OF_CONCEPT["own_tag_dropout"],
}
"""sd-scripts name → a setting that a folder can override; if all folders agree, the run's setting is used."""


@dataclass(frozen=True)
class Folders:
    """A dataset file: folders to train on, settings under their sd-scripts names, and what cannot be kept."""

    concepts: tuple[Concept, ...]
    settings: Mapping[str, Any]
    ignored: tuple[IgnoredKey, ...]


def read_folders(values: Mapping[str, Any]) -> Folders:
    """The folders and settings of a dataset file's values; ConfigError if they do not have its structure."""
    subsets = [
        {ALIASES.get(key, key): value for key, value in subset.items() if strip_value(value) is not None}
        for subset in _subsets(values)
    ]
    ignored: list[IgnoredKey] = []
    own = {key for key in OWN_CAPTIONS if len({str(subset.get(key)) for subset in subsets}) > 1}
    concepts = _with_own_sides([_concept(subset, own, ignored) for subset in subsets], subsets)
    settings = {
        key: value
        for subset in reversed(subsets)
        for key, value in subset.items()
        if key not in {*_CONCEPT, *FOLDER_SWITCHES, *own}
    }
    unsupported = DEFAULTS.keys() - kohya_parameters().keys()
    for key in sorted(settings.keys() - unsupported - set(FACTS) - {"resolution"}):
        ignored += _differing(key, settings[key], [subset.get(key) for subset in subsets])
    ignored += [IgnoredKey(f"dataset: {key}", settings.pop(key), FACT) for key in FACTS if key in settings]
    rest = values.keys() - {"general", "datasets"}
    ignored += [IgnoredKey(f"dataset: {key}", values[key], "does not belong in a dataset file") for key in sorted(rest)]
    return Folders(tuple(concepts), settings, tuple(ignored))


def _with_own_sides(concepts: Sequence[Concept], subsets: Sequence[Mapping[str, Any]]) -> list[Concept]:
    """The folders, with `resolutions` set for those that differ from the first."""
    found = [parse_sides(subset.get("resolution")) for subset in subsets]
    sides = [square_side(one) if one else None for one in found]
    return [
        concept if side in (None, sides[0]) else replace(concept, resolutions=str(side))
        for concept, side in zip(concepts, sides, strict=True)
    ]


def _switched(raw: Any) -> str:
    return "on" if parse_flag(raw) else "off"


def _differing(key: str, first: Any, given: Sequence[Any]) -> Iterator[IgnoredKey]:
    for value in [value for value in given if value != first][:1]:
        how = "is set for only some of the folders" if value is None else "differs between the folders"
        yield IgnoredKey(f"dataset: {key}", value, f"{how}; {first!r} is used for all of them")


def _subsets(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every subset with its inherited values."""
    general = _table(values.get("general", {}), "general")
    for number, dataset in enumerate(_tables(values.get("datasets"), "datasets"), start=1):
        shared = {key: value for key, value in dataset.items() if key != "subsets"}
        for subset in _tables(dataset.get("subsets"), f"datasets[{number}].subsets"):
            yield {**general, **shared, **subset}


def _tables(value: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError([Problem("error", where, "must be a list of tables in a dataset file of sd-scripts.")])
    return [_table(table, where) for table in value]


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError([Problem("error", where, "must be a table in a dataset file of sd-scripts.")])
    return value


def _concept(subset: Mapping[str, Any], own: Collection[str], ignored: list[IgnoredKey]) -> Concept:
    """The folder; without `num_repeats` sd-scripts repeats its images once, whatever the folder's name says.

    `own`: the caption settings that are not the same for all folders.
    """
    values: dict[str, Any] = {"repeats": 1}
    for key, switched in FOLDER_SWITCHES.items():
        if parse_flag(subset.get(key)):
            values.update(switched)
    for key, parameter in {**_CONCEPT, **{key: OWN_CAPTIONS[key] for key in own}}.items():
        if key in subset and key not in FOLDER_SWITCHES:
            raw = subset[key]
            try:
                values[parameter.name] = parse_value(parameter, _switched(raw) if parameter.choices else raw)
            except ValueError as reason:
                ignored.append(IgnoredKey(f"dataset: {key}", subset[key], invalid(subset[key], reason)))
    return Concept(**values)
