"""The form as plain values: which fields it has, how a config fills them, and how they become one.

No gradio here. A *form* is a mapping from field key to the value that its widget shows; keys are a
parameter's name, with `concept_` or `regularisation_` before it for the two folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lib_lora_train.config import Concept, TrainConfig, read_config
from lib_lora_train.errors import OutputError, Problem
from lib_lora_train.judge import judge
from lib_lora_train.parameters import Parameter, parameters_of

Owner = Literal["run", "concept", "regularisation"]
Form = Mapping[str, Any]

_REGULARISATION_NAMES = ("folder", "repeats")


@dataclass(frozen=True)
class Field:
    """One widget of the form: a parameter, and whose it is."""

    owner: Owner
    parameter: Parameter

    @property
    def key(self) -> str:
        """The name in the form; unique."""
        return self.parameter.name if self.owner == "run" else f"{self.owner}_{self.parameter.name}"

    @property
    def is_text(self) -> bool:
        """True where the widget is a text box: texts, "empty means automatic", and numbers like 1e-4."""
        parameter = self.parameter
        return (
            parameter.optional or parameter.kind in (float, tuple) or (parameter.kind is str and not parameter.choices)
        )


def form_fields() -> tuple[Field, ...]:
    """Every field, in order of declaration; the folders first."""
    concept = parameters_of(Concept)
    return (
        *(Field("concept", p) for p in concept if p.name != "is_regularisation"),
        *(Field("regularisation", p) for p in concept if p.name in _REGULARISATION_NAMES),
        *(Field("run", p) for p in parameters_of(TrainConfig)),
    )


def fill_form(config: TrainConfig) -> dict[str, Any]:
    """What the widgets show for `config`, for every field.

    The form has one place for a concept and one for regularisation; of several the first is shown.
    """
    own = next((c for c in config.concepts if not c.is_regularisation), Concept())
    regularisation = next((c for c in config.concepts if c.is_regularisation), Concept())
    owners = {"run": config, "concept": own, "regularisation": regularisation}
    return {field.key: _shown(field, getattr(owners[field.owner], field.parameter.name)) for field in form_fields()}


def with_values(form: Form, values: Mapping[str, Any]) -> dict[str, Any]:
    """The form with some of the run's parameters changed."""
    changed = {f.key: _shown(f, values[f.key]) for f in form_fields() if f.owner == "run" and f.key in values}
    return {**form, **changed}


def with_config(form: Form, config: TrainConfig) -> dict[str, Any]:
    """The form of another config; the folders stay where that config has none."""
    filled = fill_form(config)
    if config.concepts:
        return filled
    return {f.key: filled[f.key] if f.owner == "run" else form[f.key] for f in form_fields()}


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
    return config, (*problems, *(p for p in judge(config) if p.where not in unusable))


def form_values(form: Form) -> dict[str, Any]:
    """The form's raw values with the names that `read_config` takes; nothing is checked."""
    values: dict[str, Any] = {f.key: form[f.key] for f in form_fields() if f.owner == "run" and f.key in form}
    tables = [_table(form, "concept")]
    regularisation = _table(form, "regularisation")
    if regularisation.get("folder"):
        tables.append({**regularisation, "is_regularisation": True})
    values["concepts"] = [table for table in tables if table.get("folder")]
    return values


def _table(form: Form, owner: Owner) -> dict[str, Any]:
    fields = (field for field in form_fields() if field.owner == owner)
    return {f.parameter.name: form[f.key] for f in fields if str(form.get(f.key) or "").strip()}


def load_draft(home: Path) -> dict[str, Any] | None:
    """The form as it was last saved, None when there is none that can be read."""
    try:
        draft = json.loads((home / "draft.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(draft, dict):
        return None
    return {**fill_form(TrainConfig()), **{f.key: draft[f.key] for f in form_fields() if f.key in draft}}


def save_draft(home: Path, form: Form) -> None:
    """Keep the form for the next page load; OutputError when the folder cannot be written."""
    file = home / "draft.json"
    unfinished = file.with_suffix(".part")
    try:
        home.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(dict(form), ensure_ascii=False, indent=1), encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        raise OutputError(f"The form cannot be kept in {file}: {error.strerror}. Free some space there.") from error
