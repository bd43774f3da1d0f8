"""The form as plain values: which fields it has, how a config fills them, and how they become one.

No gradio here. A *form* is a mapping from field key to the value that its widget shows: a parameter's name, and
`concepts` for the cards of the Dataset panel, as one JSON text (a list of tables with `Concept`'s names).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig, read_config
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core import atomic_write as whole_file
from lib_lora_train.core.errors import Problem

Form = Mapping[str, Any]
CONCEPTS = "concepts"
_APPLIED = "applied presets"


@dataclass(frozen=True)
class Field:
    """One widget of the form: a parameter of the run, or of a concept's card."""

    parameter: Parameter

    @property
    def key(self) -> str:
        """The name in the form, or in a card's table; unique there."""
        return self.parameter.name

    @property
    def is_text(self) -> bool:
        """True where the widget is a text box: texts, "empty means automatic", and numbers like 1e-4."""
        parameter = self.parameter
        return (
            parameter.optional or parameter.kind in (float, tuple) or (parameter.kind is str and not parameter.choices)
        )


def form_fields() -> tuple[Field, ...]:
    """Every field of the run, in order of declaration."""
    return tuple(map(Field, parameters_of(TrainConfig)))


def concept_fields() -> tuple[Field, ...]:
    """Every field of a concept's card, in order of declaration."""
    return tuple(map(Field, parameters_of(Concept)))


def fill_form(config: TrainConfig) -> dict[str, Any]:
    """What the widgets show for `config`, for every field, and the cards."""
    values = {field.key: _shown(field, getattr(config, field.key)) for field in form_fields()}
    return {CONCEPTS: concepts_text(config.concepts), **values}


def concepts_text(concepts: Sequence[Concept]) -> str:
    """The cards of these concepts; what stands at its default is left out. One empty card where there is none."""
    tables = [
        {f.key: _shown(f, getattr(c, f.key)) for f in concept_fields() if getattr(c, f.key) != f.parameter.default}
        for c in concepts
    ]
    return json.dumps(tables or [{}], ensure_ascii=False)


def with_values(form: Form, values: Mapping[str, Any]) -> dict[str, Any]:
    """The form with some of the run's parameters changed."""
    return {**form, **{f.key: _shown(f, values[f.key]) for f in form_fields() if f.key in values}}


def with_config(form: Form, config: TrainConfig) -> dict[str, Any]:
    """The form of another config; the concepts stay where that config has none."""
    filled = fill_form(config)
    return filled if config.concepts else {**filled, CONCEPTS: form[CONCEPTS]}


def _shown(field: Field, value: Any) -> Any:
    if isinstance(value, tuple):
        return "\n".join(value)
    if not field.is_text:
        return value
    return "" if value is None else number_text(value) if isinstance(value, float) else str(value)


def number_text(value: float) -> str:
    """As people of the field write it: 0.0001 → `1e-4`, 0.05 → `0.05`, 16.0 → `16`."""
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def read_form(form: Form) -> tuple[TrainConfig, tuple[Problem, ...]]:
    """The config that the form describes, and every problem: unusable values first, then combinations.

    Where a value is unusable its default is judged in its place, so all problems are seen at once.
    """
    config, problems = read_config(form_values(form))
    unusable = {problem.where for problem in problems}
    return config, (*problems, *(p for p in validate(config) if p.where not in unusable))


def form_values(form: Form) -> dict[str, Any]:
    """The form's raw values with the names that `read_config` takes; nothing is checked."""
    values: dict[str, Any] = {f.key: form[f.key] for f in form_fields() if f.key in form}
    tables = [{name: value for name, value in table.items() if _is_given(value)} for table in concept_tables(form)]
    return {**values, CONCEPTS: tables if any(table.get("folder") for table in tables) else []}


def concept_tables(form: Form) -> list[dict[str, Any]]:
    """The cards as tables; none where the text is not what the page writes."""
    try:
        tables = json.loads(form.get(CONCEPTS) or "[]")
    except ValueError:
        return []
    return [table for table in tables if isinstance(table, dict)] if isinstance(tables, list) else []


def _is_given(value: Any) -> bool:
    return str("" if value is None else value).strip() != ""


def load_draft(home: Path) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The form as it was last saved, None when there is none that can be read; and the presets applied to it."""
    try:
        draft = json.loads((home / "draft.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, ()
    if not isinstance(draft, dict):
        return None, ()
    applied = draft.get(_APPLIED)
    presets = tuple(map(str, applied)) if isinstance(applied, list) else ()
    return {key: draft.get(key, value) for key, value in fill_form(TrainConfig()).items()}, presets


def save_draft(home: Path, form: Form, applied: Sequence[str] = ()) -> None:
    """Keep the form for the next page load; OutputError when the folder cannot be written."""
    draft = {**form, _APPLIED: list(applied)}
    whole_file.write_text(home / "draft.json", json.dumps(draft, ensure_ascii=False, indent=1), makes_folder=True)
