"""A dataset file of sd-scripts: `[general]`, `[[datasets]]` and `[[datasets.subsets]]`, as folders and run settings.

A subset's value counts more than its dataset's, and that more than the general one. Here most settings hold for the
whole run, so those that differ from folder to folder cannot all be kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib_lora_train.config.parameters import parameters_of, parse_value
from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import ConfigError, Problem
from lib_lora_train.formats.kohya.intake import FACT, Ignored, cleaned, flag_of, kohya_parameters, sides_of, square_side
from lib_lora_train.formats.kohya.keys import ALIASES, DEFAULTS, FACTS, FOLDER_SWITCHES

_CONCEPT = {parameter.kohya: parameter for parameter in parameters_of(Concept) if parameter.kohya}
_OF_CONCEPT = {parameter.name: parameter for parameter in parameters_of(Concept)}
_OWN_CAPTIONS = {
    "shuffle_caption": _OF_CONCEPT["own_shuffle"],
    "keep_tokens": _OF_CONCEPT["own_keep_tokens"],
    "caption_prefix": _OF_CONCEPT["own_prefix"],
    "caption_suffix": _OF_CONCEPT["own_suffix"],
    "caption_dropout_rate": _OF_CONCEPT["own_caption_dropout"],
    "caption_tag_dropout_rate": _OF_CONCEPT["own_tag_dropout"],
}
"""sd-scripts' name → what a folder can have of its own; where all folders have the same, it is the run's."""


@dataclass(frozen=True)
class Folders:
    """What a dataset file says: folders to train on, settings under sd-scripts' names, and what differs too much."""

    concepts: tuple[Concept, ...]
    settings: Mapping[str, Any]
    ignored: tuple[Ignored, ...]


def read_folders(values: Mapping[str, Any]) -> Folders:
    """The folders and settings of a dataset file's values; ConfigError when they have another form."""
    subsets = [
        {ALIASES.get(key, key): value for key, value in subset.items() if cleaned(value) is not None}
        for subset in _subsets(values)
    ]
    ignored: list[Ignored] = []
    own = {key for key in _OWN_CAPTIONS if len({str(subset.get(key)) for subset in subsets}) > 1}
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
    ignored += [Ignored(f"dataset: {key}", settings.pop(key), FACT) for key in FACTS if key in settings]
    rest = values.keys() - {"general", "datasets"}
    ignored += [Ignored(f"dataset: {key}", values[key], "has no place in a dataset file") for key in sorted(rest)]
    return Folders(tuple(concepts), settings, tuple(ignored))


def _with_own_sides(concepts: Sequence[Concept], subsets: Sequence[Mapping[str, Any]]) -> list[Concept]:
    """The folders, with the resolution of those that have another one than the first."""
    found = [sides_of(subset.get("resolution")) for subset in subsets]
    sides = [square_side(one) if one else None for one in found]
    return [
        concept if side in (None, sides[0]) else replace(concept, resolutions=str(side))
        for concept, side in zip(concepts, sides, strict=True)
    ]


def _switched(raw: Any) -> str:
    return "on" if flag_of(raw) else "off"


def _differing(key: str, first: Any, given: Sequence[Any]) -> Iterator[Ignored]:
    for value in [value for value in given if value != first][:1]:
        how = "is given for some folders only" if value is None else "differs between the folders"
        yield Ignored(f"dataset: {key}", value, f"{how}; here one value holds for all, {first!r}")


def _subsets(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every subset with what it inherits."""
    general = _table(values.get("general", {}), "general")
    for number, dataset in enumerate(_tables(values.get("datasets"), "datasets"), start=1):
        shared = {key: value for key, value in dataset.items() if key != "subsets"}
        for subset in _tables(dataset.get("subsets"), f"datasets[{number}].subsets"):
            yield {**general, **shared, **subset}


def _tables(value: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError([Problem("error", where, "is not a list of tables; a dataset file of sd-scripts has one.")])
    return [_table(table, where) for table in value]


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError([Problem("error", where, "is not a table; in a dataset file of sd-scripts it is one.")])
    return value


def _concept(subset: Mapping[str, Any], own: Collection[str], ignored: list[Ignored]) -> Concept:
    """The folder; sd-scripts shows its images once where the subset gives no number, whatever its name says.

    `own` are the caption settings that are not the same for all folders.
    """
    values: dict[str, Any] = {"repeats": 1}
    for key, meant in FOLDER_SWITCHES.items():
        if flag_of(subset.get(key)):
            values.update(meant)
    for key, parameter in {**_CONCEPT, **{key: _OWN_CAPTIONS[key] for key in own}}.items():
        if key in subset and key not in FOLDER_SWITCHES:
            raw = subset[key]
            try:
                values[parameter.name] = parse_value(parameter, _switched(raw) if parameter.choices else raw)
            except ValueError as reason:
                ignored.append(Ignored(f"dataset: {key}", subset[key], f"cannot be used: {str(reason).rstrip('.')}"))
    return Concept(**values)
