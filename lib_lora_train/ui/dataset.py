"""The Dataset panel: one card per concept, a summary of the images found, and the plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from lib_lora_train.core.wording import count
from lib_lora_train.dataset.durations import describe_durations
from lib_lora_train.ui.widgets import build_button, build_hidden_text, build_html, label_of, placeholder_of
from lib_lora_train.web.form import CONCEPTS, Field, Form, concept_fields
from lib_lora_train.web.markup import heading, location_label, problem_list, text, tiles
from lib_lora_train.web.repeats import RULE, scanned_folders

if TYPE_CHECKING:
    from lib_lora_train.dataset.plan import Plan
    from lib_lora_train.dataset.scan import Dataset, ScannedConcept
    from lib_lora_train.runs.estimates.requirements import Requirements
    from lib_lora_train.web.form_check import FormCheck, ScannedDataset

_STEPS = (
    ("Enter a folder", "in a card on the left, with a trigger word. Or press Fill in the demo to try it out."),
    (
        "Press Scan",
        "and read the plan: number of steps, image sizes, problems to fix. Ten to thirty images are enough.",
    ),
    ("Start training", "in the Train panel. A preset fits most cases; nothing else needs changing."),
    (
        "Watch the Monitor",
        "and see the samples change with each epoch. Use now adds the current step to your prompt.",
    ),
    ("Choose an epoch", "in Results: the first whose row shows the concept and leaves the other prompts as they were."),
)
"""Instructions for a first run, shown until there is a plan."""

FIRST_STEPS = (
    "<div class='lt-empty'><b>Five steps to a LoRA</b><ol class='lt-guide'>"
    + "".join(f"<li><p><b>{title}</b> {what}</p></li>" for title, what in _STEPS)
    + "</ol></div>"
)


@dataclass(frozen=True)
class DatasetPanel:
    """The panel's components."""

    fields: Mapping[str, Any]
    scan: Any
    balance: Any
    message: Any
    summary: Any


def build_dataset_panel(form: Form) -> DatasetPanel:
    """Build the panel with the values of the form. JavaScript draws the cards and stores them in a hidden text box."""
    with gr.Row(elem_classes=["lt-columns"]):
        with gr.Column(scale=2, min_width=300):
            build_html(f"<div data-lt='concepts' data-fields='{text(_declarations())}'></div>", "cards")
            concepts = build_hidden_text(CONCEPTS, form[CONCEPTS])
            with gr.Row(elem_classes=["lt-buttons"]):
                scan = build_button(
                    "Scan", "scan", variant="primary", tooltip="Read the folders and plan the training."
                )
                balance = build_button("Balance repeats", "balance", tooltip=RULE)
            message = build_html("", "balance_message")
        with gr.Column(scale=3, min_width=300):
            summary = build_html(FIRST_STEPS, "dataset_summary")
            build_html("<div data-lt='checkup'></div>", "checkup")
    build_html("<div data-lt='images'></div>", "images")
    return DatasetPanel({CONCEPTS: concepts}, scan, balance, message, summary)


def _declarations() -> str:
    """The parameters of a concept as JSON, from which JavaScript draws the cards."""
    return json.dumps([_declaration(field) for field in concept_fields()], ensure_ascii=False)


def _declaration(field: Field) -> dict[str, Any]:
    parameter = field.parameter
    kinds = {bool: "check", int: "text", float: "text"}
    return {
        "name": field.key,
        "label": label_of(parameter),
        "help": parameter.help,
        "kind": "choice" if parameter.choices else kinds.get(parameter.kind, "text"),
        "choices": parameter.choices,
        "default": "" if field.is_text and parameter.default is None else parameter.default,
        "isMore": parameter.tier == "advanced",
        "placeholder": placeholder_of(field),
    }


def render_dataset(scanned: ScannedDataset | None, checked: FormCheck) -> str:
    """The model in use, the images found, what was skipped and why, and the plan."""
    return model_line(checked) + _render_found(scanned, checked)


def model_line(checked: FormCheck) -> str:
    """The model that the run would train on, or why that is impossible."""
    problem = next((p for p in checked.model.problems if p.level == "error"), None)
    shown = str(problem) if problem else checked.model.description
    return f"<p class='lt-faint lt-model'>Model: {text(shown)}</p>" if shown else ""


def _render_found(scanned: ScannedDataset | None, checked: FormCheck) -> str:
    if checked.scan_errors:
        fixes = {fix.problem: fix.label for fix in checked.fixes}
        return f"<div class='lt-card'>{problem_list(checked.scan_errors, fixes)}</div>"
    if scanned is None or not scanned.is_of(checked.config):
        return FIRST_STEPS
    dataset, plan = scanned.dataset, checked.plan
    findings = count(len(dataset.problems), "finding")
    why = "title='What was skipped or looks wrong, and why'"
    skipped = f"<details class='lt-skipped' {why}><summary>{findings} in the folders</summary>"
    parts = [
        "<div class='lt-card'>",
        heading("Found"),
        _found_tiles(dataset),
        _concept_table(dataset),
        f"{skipped}{problem_list(dataset.problems)}</details>" if dataset.problems else "",
        "</div>",
        render_plan(plan, checked) if plan else "",
    ]
    cards = text(json.dumps(_card_facts(scanned)))
    return f"<div data-lt-scan='{scanned.number}' data-cards='{cards}'>{''.join(parts)}</div>"


def _card_facts(scanned: ScannedDataset) -> list[dict[str, Any]]:
    """For each card: its images, how often an epoch shows them, and their share of the epoch."""
    found = [scanned_folders(concept, scanned.dataset) for concept in scanned.concepts]
    shown = [sum(folder.image_count * folder.repeats for folder in folders) for folders in found]
    total = sum(n for n, concept in zip(shown, scanned.concepts, strict=True) if not concept.is_regularisation)
    return [
        {
            "images": sum(folder.image_count for folder in folders),
            "shown": number,
            "share": None if concept.is_regularisation else number / max(total, 1),
        }
        for folders, number, concept in zip(found, shown, scanned.concepts, strict=True)
    ]


def _found_tiles(dataset: Dataset) -> str:
    regularisation = sum(dataset.concepts[item.concept].is_regularisation for item in dataset.items)
    captions = len({item.caption for item in dataset.items})
    facts = [
        ("images", f"{len(dataset.items) - regularisation:,}"),
        ("regularisation", f"{regularisation:,}"),
        ("different captions", f"{captions:,}"),
        ("findings", f"{len(dataset.problems):,}"),
    ]
    return tiles(fact for fact in facts if fact[1] != "0" or fact[0] == "images")


def _concept_table(dataset: Dataset) -> str:
    most = max(c.image_count * c.repeats for c in dataset.concepts)
    rows = "".join(_concept_row(concept, most) for concept in dataset.concepts)
    return (
        "<table class='lt-table'><thead><tr><th>Folder</th><th class='lt-number'>Images</th>"
        f"<th class='lt-number'>Repeats</th><th>Shown per epoch</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _concept_row(concept: ScannedConcept, most: int) -> str:
    shown = concept.image_count * concept.repeats
    name = text(concept.name) + (" <i class='lt-tag'>regularisation</i>" if concept.is_regularisation else "")
    return (
        f"<tr><td title='{text(concept.folder)}'>{name}</td><td class='lt-number'>{concept.image_count:,}</td>"
        f"<td class='lt-number'>{concept.repeats:,}</td><td>{_bar(shown, most)}</td></tr>"
    )


def _bar(value: int, most: int) -> str:
    width = 100 * value / max(most, 1)
    return (
        f"<span class='lt-bar'><span style='width:{width:.1f}%'></span></span><span class='lt-figure'>{value:,}</span>"
    )


def render_plan(plan: Plan, checked: FormCheck) -> str:
    """Steps, time, memory, buckets and warnings."""
    requirements = checked.requirements
    fixes = {fix.problem: fix.label for fix in checked.fixes}
    facts = [
        ("steps per epoch", f"{plan.steps_per_epoch:,}"),
        ("epochs", f"{plan.epochs:,}"),
        ("steps in total", f"{plan.total_steps:,}"),
        ("images per step", f"{plan.batch_size * plan.accumulation:,}"),
        *(requirements.tiles if requirements else ()),
    ]
    return "".join(
        [
            "<div class='lt-card'>",
            heading("Plan"),
            tiles(facts),
            _durations_note(describe_durations(checked.config, plan)),
            _requirements_note(requirements) if requirements else "",
            _bucket_chart(plan),
            problem_list(checked.plan_problems, fixes),
            "</div>",
        ]
    )


def _durations_note(durations: Mapping[str, str]) -> str:
    """`Warmup: 5% = 42 of 840 steps`, for each setting that is a share of the run."""
    return "".join(f"<p class='lt-faint'>{text(location_label(name))}: {note}</p>" for name, note in durations.items())


def _requirements_note(requirements: Requirements) -> str:
    return (
        "<div class='lt-requirements'>"
        + "".join(f"<p class='lt-faint'>{text(line)}</p>" for line in requirements.sentences)
        + "</div>"
    )


def _bucket_chart(plan: Plan) -> str:
    buckets = sorted(plan.buckets, key=lambda bucket: -bucket.sample_count)
    most = max((bucket.sample_count for bucket in buckets), default=1)
    rows = "".join(
        f"<tr><td class='lt-nowrap'>{_shape(b.width, b.height)}{b.width} × {b.height}</td>"
        f"<td class='lt-number'>{b.image_count:,}</td><td>{_bar(b.sample_count, most)}</td></tr>"
        for b in buckets
    )
    return (
        "<table class='lt-table'><thead><tr><th>Bucket</th><th class='lt-number'>Images</th>"
        f"<th>Shown per epoch</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _shape(width: int, height: int) -> str:
    """An icon with the aspect ratio of the bucket."""
    unit = 16 / max(width, height)
    return f"<i class='lt-shape'><i style='width:{width * unit:.0f}px;height:{height * unit:.0f}px'></i></i>"


def plan_sentence(plan: Plan | None, requirements: Requirements | None = None) -> str:
    """The plan in one line beside the Start button: steps, images, time, memory."""
    if plan is None:
        return "<p class='lt-faint'>Press Scan in the Dataset panel to see the plan before you start.</p>"
    images = count(len(plan.dataset.items), "image")
    total = count(plan.total_steps, "step")
    more = f" · time {requirements.time_summary} · memory {requirements.memory_summary}" if requirements else ""
    why = f" title='{text(' '.join(requirements.sentences))}'" if requirements else ""
    return (
        f"<p class='lt-plan'{why}><b>{text(total)}</b><span>{text(images)} · "
        f"{count(plan.epochs, 'epoch')} of {count(plan.steps_per_epoch, 'step')}{text(more)}</span></p>"
    )
