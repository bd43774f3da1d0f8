"""The Train panel: all parameters by tier, and the problems and plan beside the Start button."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from lib_lora_train.config.merge_methods import METHODS
from lib_lora_train.config.parameters import Group, Tier
from lib_lora_train.core.measures import MEASURES
from lib_lora_train.core.phases import PHASE_TITLES
from lib_lora_train.core.wording import count
from lib_lora_train.dataset.durations import describe_durations
from lib_lora_train.ui.dataset import model_line, plan_sentence
from lib_lora_train.ui.sources import Sources, build_sources
from lib_lora_train.ui.timestep_chart import timestep_chart
from lib_lora_train.ui.widgets import (
    build_button,
    build_html,
    build_widget,
    elem_id,
    label_of,
    place_in_row,
    with_tooltip,
)
from lib_lora_train.web.form import Field, Form, form_fields
from lib_lora_train.web.markup import heading, problem_list, text

if TYPE_CHECKING:
    from lib_lora_train.web.form_check import ChangedSettings, FormCheck

_TITLES: Mapping[Group, str] = {
    "model": "Model and file",
    "output": "Model and file",
    "data": "Images and captions",
    "captions": "Images and captions",
    "training": "Training",
    "network": "Network",
    "noise": "Noise and loss",
    "samples": "Samples",
}
_ESSENTIAL_TITLES: Mapping[Group, str] = {**_TITLES, "data": "Training"}
_TIER_HELPS: Mapping[Tier, str] = {
    "beginner": "Worth knowing after your first LoRA. The defaults suit most datasets.",
    "advanced": "Everything else. The search above finds any setting.",
}
_TIERS: Mapping[Tier, str] = {
    "essential": "Essential",
    "beginner": "Beginner: worth knowing",
    "advanced": "Advanced",
}


@dataclass(frozen=True)
class TrainPanel:
    """The panel's components."""

    fields: Mapping[str, Any]
    sources: Sources
    start: Any
    enqueue: Any
    checked: Any


def build_train_panel(form: Form, presets: Sequence[str]) -> TrainPanel:
    """Build the panel with the values of the form: essential parameters expanded, the others collapsed."""
    fields: dict[str, Any] = {}
    with gr.Row(elem_classes=["lt-columns"]):
        with gr.Column(scale=3, min_width=300):
            with gr.Column(elem_classes=["lt-card", "lt-first"]):
                sources = build_sources(presets)
            build_html("<div data-lt='search'></div>", "search")
            with gr.Column(elem_classes=["lt-card"]):
                _add_tier(fields, form, "essential")
            for tier in ("beginner", "advanced"):
                with gr.Accordion(_TIERS[tier], open=False, elem_id=elem_id(tier), elem_classes=["lt-tier"]) as folded:
                    with_tooltip(folded, _TIER_HELPS[tier])
                    _add_tier(fields, form, tier)
        with gr.Column(scale=2, min_width=280, elem_classes=["lt-card", "lt-aside"]):
            checked = build_html("", "form_check")
            start = build_button(
                "Start training", "start", variant="primary", tooltip="Start training with these settings."
            )
            enqueue = build_button(
                "Add to the queue", "enqueue", tooltip="Train this after the runs before it in the queue."
            )
            build_html("<div data-lt='sweep'></div>", "sweep")
            build_html("<div data-lt='queue'></div>", "queue")
    return TrainPanel(fields, sources, start, enqueue, checked)


def _add_tier(fields: dict[str, Any], form: Form, tier: Tier) -> None:
    titles = _ESSENTIAL_TITLES if tier == "essential" else _TITLES
    of_tier = [field for field in form_fields() if field.parameter.tier == tier]
    sections = {title: [f for f in of_tier if titles[f.parameter.group] == title] for title in titles.values()}
    for number, (title, members) in enumerate(sections.items()):
        if members:
            build_html(heading(title), f"{tier}_{number}_heading")
            with gr.Row(elem_classes=["lt-fields"]):
                for field in sorted(members, key=place_in_row):
                    fields[field.key] = build_widget(field, form[field.key])


def render_tooltips(tooltips: Mapping[str, str]) -> str:
    """Data for JavaScript: all parameters, tooltips, and the names of phases, measures and ways to merge LoRAs."""
    parameters = {elem_id(field.key): _described(field) for field in form_fields()}
    measures = {name: dataclasses.asdict(info) for name, info in MEASURES.items()}
    methods = {name: dataclasses.asdict(method) for name, method in METHODS.items()}
    known = json.dumps(
        {
            "tooltips": tooltips,
            "parameters": parameters,
            "phases": dict(PHASE_TITLES),
            "measures": measures,
            "merge_methods": methods,
        },
        ensure_ascii=False,
    )
    return f"<div data-lt='tooltips' data-tooltips='{text(known)}'></div>"


def _described(field: Field) -> dict[str, str]:
    parameter = field.parameter
    return {
        "label": label_of(parameter),
        "tier": parameter.tier,
        "kohya": parameter.kohya,
        "help": _tooltip(field),
    }


def _tooltip(field: Field) -> str:
    parameter = field.parameter
    kohya = f"\nkohya: {parameter.kohya}" if parameter.kohya else ""
    limits = f"\n{parameter.low:g} … {parameter.high:g}" if parameter.low is not None and parameter.high else ""
    return f"{parameter.help}{limits}{kohya}"


def render_check(checked: FormCheck, *, done: str = "") -> str:
    """The plan in one line and all problems of the settings; `done` replaces the verdict after an action."""
    problems = (*checked.problems, *checked.plan_problems)
    errors = sum(problem.level == "error" for problem in problems)
    if done:
        verdict = f"<p class='lt-verdict lt-good'>{text(done)}</p>"
    elif errors:
        verdict = f"<p class='lt-verdict lt-bad'>{count(errors, 'problem')} must be fixed before starting.</p>"
    else:
        verdict = "<p class='lt-verdict lt-good'>Ready to start.</p>"
    fixes = {fix.problem: fix.label for fix in checked.fixes}
    parts = (
        heading("Start"),
        model_line(checked),
        plan_sentence(checked.plan, checked.requirements),
        verdict,
        problem_list(problems, fixes),
    )
    marks = (_changed_mark(checked.changed), _durations_mark(checked), timestep_chart(checked.config))
    return "".join((*marks, *parts))


def _changed_mark(changed: ChangedSettings) -> str:
    """Data for marking changed fields: which differ, in what, and from which presets."""
    base = " + ".join(changed.applied) or "the defaults"
    values = json.dumps({elem_id(name): values for name, values in changed.values.items()})
    return f"<div data-lt='changed' class='lt-hidden' data-values='{text(values)}' data-base='{text(base)}'></div>"


def _durations_mark(checked: FormCheck) -> str:
    """Data for the notes below the fields that are a share of the run: how many steps they are."""
    durations = describe_durations(checked.config, checked.plan) if checked.plan else {}
    notes = json.dumps({elem_id(name): note for name, note in durations.items()}, ensure_ascii=False)
    return f"<div data-lt='durations' class='lt-hidden' data-notes='{text(notes)}'></div>"
