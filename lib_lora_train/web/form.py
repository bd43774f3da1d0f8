"""The form as plain values: its fields, and conversion from and to a config.

A *form* maps field keys to the values of their widgets. The keys are the names of the parameters, and `concepts` for
the cards of the Dataset panel: a JSON list of tables with the names of `Concept`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig, parse_concept_place, read_config
from lib_lora_train.config.validation.validate import all_problems
from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.wording import number_text

Form = Mapping[str, Any]
CONCEPTS = "concepts"
_APPLIED = "applied presets"


@dataclass(frozen=True)
class Field:
    """One widget of the form, for a parameter of the run or of a concept."""

    parameter: Parameter

    @property
    def key(self) -> str:
        """The name in the form, or in the table of a concept; unique there."""
        return self.parameter.name

    @property
    def is_text(self) -> bool:
        """Whether the widget is a text box: texts, numbers like 1e-4, and parameters that may be empty."""
        parameter = self.parameter
        return (
            parameter.optional or parameter.kind in (float, tuple) or (parameter.kind is str and not parameter.choices)
        )


def form_fields() -> tuple[Field, ...]:
    """Every field of the run, in order of declaration."""
    return tuple(map(Field, parameters_of(TrainConfig)))


def concept_fields() -> tuple[Field, ...]:
    """Every field of a concept, in order of declaration."""
    return tuple(map(Field, parameters_of(Concept)))


def fill_form(config: TrainConfig) -> dict[str, Any]:
    """The values of all widgets for `config`."""
    values = {field.key: _widget_value(field, getattr(config, field.key)) for field in form_fields()}
    return {CONCEPTS: concepts_text(config.concepts), **values}


def concepts_text(concepts: Sequence[Concept]) -> str:
    """The concepts as JSON without values that equal the default; one empty concept if there are none."""
    tables = [
        {
            f.key: _widget_value(f, getattr(c, f.key))
            for f in concept_fields()
            if getattr(c, f.key) != f.parameter.default
        }
        for c in concepts
    ]
    return json.dumps(tables or [{}], ensure_ascii=False)


def with_values(form: Form, values: Mapping[str, Any]) -> dict[str, Any]:
    """The form with values changed by their places: parameters of the run, or of a concept (`concepts[1].trigger`)."""
    changed = {**form, **{f.key: _widget_value(f, values[f.key]) for f in form_fields() if f.key in values}}
    places = {place: value for name, value in values.items() if (place := parse_concept_place(name))}
    if places:
        tables, fields = concept_tables(form), {field.key: field for field in concept_fields()}
        for (number, name), value in places.items():
            tables[number - 1][name] = _widget_value(fields[name], value)
        changed[CONCEPTS] = json.dumps(tables, ensure_ascii=False)
    return changed


def with_config(form: Form, config: TrainConfig) -> dict[str, Any]:
    """The form filled in for `config`; the concepts stay if `config` has none."""
    filled = fill_form(config)
    return filled if config.concepts else {**filled, CONCEPTS: form[CONCEPTS]}


def _widget_value(field: Field, value: Any) -> Any:
    if isinstance(value, tuple):
        return "\n".join(value)
    if not field.is_text:
        return value
    return "" if value is None else number_text(value) if isinstance(value, float) else str(value)


def read_form(form: Form) -> tuple[TrainConfig, tuple[Problem, ...]]:
    """The config that the form describes, and all problems: unusable values first, then combinations.

    Unusable values are replaced by their defaults, so that all problems are found at once.
    """
    config, problems = read_config(form_values(form))
    return config, all_problems(config, problems)


def form_values(form: Form) -> dict[str, Any]:
    """The raw values by the names that `read_config` expects, unchecked."""
    values: dict[str, Any] = {f.key: form[f.key] for f in form_fields() if f.key in form}
    tables = [{name: value for name, value in table.items() if _is_set(value)} for table in concept_tables(form)]
    return {**values, CONCEPTS: tables if any(table.get("folder") for table in tables) else []}


def concept_tables(form: Form) -> list[dict[str, Any]]:
    """The tables of the concepts, [] if the text is not valid JSON for them."""
    try:
        tables = json.loads(form.get(CONCEPTS) or "[]")
    except ValueError:
        return []
    return [table for table in tables if isinstance(table, dict)] if isinstance(tables, list) else []


def _is_set(value: Any) -> bool:
    return str("" if value is None else value).strip() != ""


@dataclass(frozen=True)
class Draft:
    """The form as it was saved, None if there is none, and the presets that were applied to it.

    `left_out` names what the file has beside values that the form can show.
    """

    form: dict[str, Any] | None = None
    applied: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def load_draft(home: Path) -> Draft:
    """The saved form; values of a wrong kind are replaced by their defaults."""
    file = home / "draft.json"
    try:
        saved = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return Draft()
    except (OSError, ValueError, RecursionError):
        return Draft(left_out=(f"{file} cannot be read",))
    if not isinstance(saved, dict):
        return Draft(left_out=(f"{file} is not a form",))
    applied = saved.pop(_APPLIED, None)
    presets = tuple(map(str, applied)) if isinstance(applied, list) else ()
    concepts, wrong = _usable_concepts(saved.get(CONCEPTS, ""))
    form = {**fill_form(TrainConfig()), CONCEPTS: concepts}
    fields = {field.key: field for field in form_fields()}
    for key, value in saved.items():
        if key in fields and _is_showable(fields[key], value):
            form[key] = value
        elif key != CONCEPTS:
            wrong.append(key)
    return Draft(form, presets, tuple(wrong))


def _is_showable(field: Field, value: Any) -> bool:
    """Whether the widget of the field can show the value, be it usable or not."""
    parameter = field.parameter
    if parameter.kind is bool:
        return isinstance(value, bool)
    if parameter.choices:
        return value in parameter.choices if isinstance(value, str) else value is None
    if field.is_text:
        return value is None or isinstance(value, str)
    if isinstance(value, str):
        return value.strip().lstrip("-").replace(".", "", 1).isdecimal()
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))


def _usable_concepts(value: Any) -> tuple[str, list[str]]:
    """The text of the concepts without what is of a wrong kind, and the names of that."""
    empty = fill_form(TrainConfig())[CONCEPTS]
    try:
        tables = json.loads(value or empty)
    except (TypeError, ValueError, RecursionError):
        return empty, [CONCEPTS]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        return empty, [CONCEPTS]
    fields, wrong = {field.key: field for field in concept_fields()}, []
    for number, table in enumerate(tables, start=1):
        for name in [name for name, one in table.items() if name not in fields or not _is_plain(one)]:
            wrong.append(f"{CONCEPTS}[{number}].{name}")
            del table[name]
    return (json.dumps(tables, ensure_ascii=False) if wrong else str(value or empty)), wrong


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def save_draft(home: Path, form: Form, applied: Sequence[str] = ()) -> None:
    """Save the form for the next page load; OutputError when the folder cannot be written."""
    draft = {**form, _APPLIED: list(applied)}
    atomic_write.write_text(home / "draft.json", json.dumps(draft, ensure_ascii=False, indent=1), make_parents=True)
