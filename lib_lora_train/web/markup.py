"""HTML fragments that several panels share. All text from outside is escaped here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from lib_lora_train.core.errors import LEVELS, Problem

_CONCEPT = re.compile(r"concepts\[(\d+)\](?:\.(\w+))?$")
_LEVEL_NAMES = {"error": "Error", "warning": "Warning", "hint": "Hint"}


def text(value: object) -> str:
    """`value` escaped for HTML and quoted attributes."""
    return html.escape(str(value), quote=True)


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """A row of figures, each above its label."""
    cells = "".join(
        f"<div class='lt-tile'><b>{text(value)}</b><span>{text(name)}</span></div>" for name, value in facts
    )
    return f"<div class='lt-tiles'>{cells}</div>"


def heading(title: str, note: str = "") -> str:
    """The title of a section, with an optional note beside it."""
    remark = f"<span>{text(note)}</span>" if note else ""
    return f"<h3 class='lt-heading'>{text(title)}{remark}</h3>"


def empty_state(title: str, explanation: str) -> str:
    """A placeholder for an empty panel: what will appear there, and how to get it."""
    return f"<div class='lt-empty'><b>{text(title)}</b><span>{text(explanation)}</span></div>"


def problem_list(problems: Sequence[Problem], fixes: Mapping[Problem, str] | None = None) -> str:
    """A list of all problems, errors first; each names its field (`data-where`), so that the page can mark it.

    `fixes` are the button labels of those with a quick fix. The page requests a fix by its number in `fixes`.
    """
    if not problems:
        return ""
    ordered = sorted(problems, key=lambda problem: LEVELS.index(problem.level))
    labels = fixes or {}
    numbers = {problem: number for number, problem in enumerate(labels)}
    lines = (_problem(p, _fix_button(numbers[p], labels[p]) if p in labels else "") for p in ordered)
    return f"<ul class='lt-problems'>{''.join(lines)}</ul>"


def _fix_button(number: int, label: str) -> str:
    title = "Change this in the form; nothing starts"
    return f"<button type='button' class='lt-small' data-lt-fix='{number}' title='{title}'>{text(label)}</button>"


def _problem(problem: Problem, button: str) -> str:
    where, shown = field_key(problem.where), f"<b>{text(location_label(problem.where))}</b> " if problem.where else ""
    target = f" data-where='{text(where)}' tabindex='0' role='button'" if where else ""
    level = f"<i>{_LEVEL_NAMES[problem.level]}</i>"
    return f"<li class='lt-{problem.level}'{target}>{level}<p>{shown}{text(problem.message)}</p>{button}</li>"


def field_key(where: str) -> str:
    """The key of the form field that a problem is about, "" for a file or folder."""
    concept = _CONCEPT.match(where)
    if concept:
        return f"concepts_{concept[1]}_{concept[2] or 'folder'}"
    if where == "concepts":
        return "concepts_1_folder"
    return where if where.isidentifier() else ""


def location_label(where: str) -> str:
    """`concepts[1].folder` → `Concept 1: folder`, `min_snr_gamma` → `Min snr gamma`; a path stays as it is."""
    concept = _CONCEPT.match(where)
    if concept:
        return f"Concept {concept[1]}" + (f": {concept[2].replace('_', ' ')}" if concept[2] else "")
    return where.replace("_", " ").capitalize() if where.isidentifier() else where
