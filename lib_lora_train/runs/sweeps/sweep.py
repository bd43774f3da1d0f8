"""Sweeps: from values for one to three settings to the runs that train every combination of them.

Nothing here reads the disk: a sweep is planned from a config and texts that a user wrote.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.parameters import Parameter, parameters_of, read_values
from lib_lora_train.config.train_config import Concept, TrainConfig, parse_concept_place
from lib_lora_train.config.validation.validate import require_usable, validate
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.wording import count, value_text

MAX_SETTINGS, MAX_RUNS = 3, 64
_LONGEST_VALUE = 24  # in a name
FIXED = {
    "output_name": "names the files; every run of a sweep gets a name made from its values",
    "output_dir": "is where the files are written, which changes nothing that could be compared",
    "sample_prompts": "must be the same in all runs, so that their samples can be compared",
}
"""Settings that a sweep cannot vary, each with the reason."""


@dataclass(frozen=True)
class Axis:
    """A setting by its place (`rank`, `concepts[1].repeats`) and the values to try, each once."""

    place: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Variant:
    """One run of a sweep: what it changes by place, and its settings."""

    changes: Mapping[str, Any]
    config: TrainConfig

    @property
    def label(self) -> str:
        """`rank 16, learning_rate 1e-4`."""
        return ", ".join(f"{place} {value_text(value)}" for place, value in self.changes.items())


def parse_axes(texts: Iterable[tuple[str, str]], config: TrainConfig, *, fewest_runs: int = 2) -> tuple[Axis, ...]:
    """The settings and values to try, from (place, values) as a user wrote them; ConfigError with all problems.

    Values of numbers, switches and choices are separated by commas or spaces, those of texts and lists by |; in a
    list, commas separate the entries of one value.
    """
    pairs = [(place.strip(), text) for place, text in texts if place.strip() or text.strip()]
    problems = [*_count_problems(pairs)]
    axes = []
    for place, text in dict(pairs).items():
        axis, found = _parse_axis(place, text, config)
        axes.append(axis)
        problems += found
    runs = math.prod(len(axis.values) for axis in axes)
    if not problems and not fewest_runs <= runs <= MAX_RUNS:
        problems.append(_wrong_number(axes, runs))
    require_usable(problems)
    return tuple(axes)


def make_variants(config: TrainConfig, axes: Iterable[Axis]) -> tuple[Variant, ...]:
    """A run for every combination of the values, in order; ConfigError if one of them cannot be trained.

    Each has its own name, made from `output_name` and the values. All else is as in `config`.
    """
    axes = tuple(axes)
    combinations = [
        dict(zip((axis.place for axis in axes), values, strict=True))
        for values in itertools.product(*(axis.values for axis in axes))
    ]
    names = _names(config.output_name, combinations)
    variants = tuple(
        Variant(changes, config.replace_at(changes).replace(output_name=name))
        for name, changes in zip(names, combinations, strict=True)
    )
    require_usable(_variant_problems(variants))
    return variants


# --- reading ------------------------------------------------------------------------------------


def _count_problems(pairs: list[tuple[str, str]]) -> Iterator[Problem]:
    if not pairs:
        yield Problem("error", "", "Choose a setting to vary, such as rank, and its values, such as 8, 16, 32.")
    twice = [place for place, number in Counter(place for place, _ in pairs).items() if number > 1]
    yield from (Problem("error", place, "is given twice. Write all of its values together.") for place in twice)
    if len(pairs) > MAX_SETTINGS:
        text = (
            f"{count(len(pairs), 'setting is', 'settings are')} varied, but at most {MAX_SETTINGS} can be "
            "compared at a time. Remove some."
        )
        yield Problem("error", "", text)


def _parse_axis(place: str, text: str, config: TrainConfig) -> tuple[Axis, list[Problem]]:
    concept = parse_concept_place(place)
    if concept and not 1 <= concept[0] <= len(config.concepts):
        text = f"does not exist: there are {count(len(config.concepts), 'concept')}."
        return Axis(place, ()), [Problem("error", place, text)]
    if place in FIXED:
        return Axis(place, ()), [Problem("error", place, f"cannot be varied: it {FIXED[place]}.")]
    declared, name = (Concept, concept[1]) if concept else (TrainConfig, place)
    parameter = next((p for p in parameters_of(declared) if p.name == name), None)
    raws = split_values(text, parameter) if parameter else [""]
    if len(raws) > MAX_RUNS:
        return Axis(place, ()), [
            Problem("error", place, f"has {count(len(raws), 'value')}, but at most {MAX_RUNS} runs make sense.")
        ]
    values: list[Any] = []
    problems = []
    for raw in raws:
        parsed, found = read_values(declared, {name: raw})
        problems += [Problem("error", place, problem.message) for problem in found]
        if not found and parsed[name] in values:
            problems.append(Problem("error", place, f"has the value {value_text(parsed[name])} twice. Remove one."))
        values += [] if found else [parsed[name]]
    if not raws:
        problems.append(Problem("error", place, "has no values to try. Write some, such as 8, 16, 32."))
    return Axis(place, tuple(values)), problems


def split_values(text: str, parameter: Parameter) -> list[Any]:
    """The values in a text, unchecked: separated by | for texts and lists, else by commas, semicolons or spaces."""
    if parameter.kind in (str, tuple) and not parameter.choices:
        parts = [part.strip() for part in text.split("|")]
        return [re.split(r"[,\n]", part) for part in parts] if parameter.kind is tuple else parts
    if parameter.choices and any(" " in choice for choice in parameter.choices):
        return [part.strip() for part in re.split(r"[,;|\n]", text) if part.strip()]
    return [part for part in re.split(r"[,;|\s]+", text) if part]


def _wrong_number(axes: list[Axis], runs: int) -> Problem:
    if runs > MAX_RUNS:
        product = " × ".join(str(len(axis.values)) for axis in axes)
        is_product = len(axes) > 1
        many = count(runs, "run is", "runs are")
        text = f"{product} = {many} too many" if is_product else f"{many} too many"
        return Problem("error", "", f"{text}; at most {MAX_RUNS} make sense in one comparison. Remove some values.")
    return Problem("error", axes[0].place, "has a single value, so there is nothing to compare. Write at least two.")


# --- the runs -----------------------------------------------------------------------------------


def _variant_problems(variants: tuple[Variant, ...]) -> Iterator[Problem]:
    """The errors of all runs; one that all of them have is named once, any other with the values that cause it."""
    found: dict[tuple[str, str], list[Variant]] = {}
    for variant in variants:
        for problem in validate(variant.config):
            if problem.level == "error":
                found.setdefault((problem.where, problem.message), []).append(variant)
    for (where, message), affected in found.items():
        if len(affected) == len(variants):
            yield Problem("error", where, message)
        else:
            labels = "; ".join(variant.label for variant in affected[:3])
            more = f" and {len(affected) - 3} more" if len(affected) > 3 else ""
            yield Problem("error", where, f"{message} (With {labels}{more}.)")


def _names(base: str, combinations: list[dict[str, Any]]) -> list[str]:
    """A name for each run, different from all others."""
    names = ["-".join((base, *(_name_part(*change) for change in changes.items()))) for changes in combinations]
    seen: Counter[str] = Counter()
    for number, name in enumerate(names):
        seen[name.lower()] += 1
        if seen[name.lower()] > 1:
            names[number] = f"{name}-v{seen[name.lower()]}"
    return names


def _name_part(place: str, value: Any) -> str:
    """`rank16`, `optimizer_Prodigy`: never a number alone, which would look like an epoch."""
    concept = parse_concept_place(place)
    setting = f"{concept[1]}{concept[0]}_" if concept else place
    text = re.sub(r"[^\w.+-]+", "_", value_text(value))[:_LONGEST_VALUE].strip("._-")
    is_joined = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{setting}{text}" if is_joined else f"{setting.rstrip('_')}_{text or 'empty'}"
