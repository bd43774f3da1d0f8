"""A plan in words, for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lib_lora_train.dataset.plan import Plan, ceil_div


def describe_plan(plan: Plan) -> str:
    """The plan in aligned lines: images, steps, buckets, findings."""
    per_step = plan.batch_size * plan.accumulation
    counted = f"{plan.steps_per_epoch:,} per epoch × {plan.epochs:,} epochs"
    cut = plan.steps_per_epoch * plan.epochs - plan.total_steps
    sections = {
        "Images": _concept_lines(plan),
        "Steps": [
            f"{plan.total_steps:,} = {counted}" + (f" − {cut:,} (max_steps)" if cut else ""),
            f"{per_step} images per step: batch {plan.batch_size} × accumulation {plan.accumulation}; "
            f"{plan.samples_per_epoch:,} samples per epoch",
        ],
        "Buckets": _bucket_lines(plan),
    }
    lines = []
    for title, texts in sections.items():
        lines += [f"{title if number == 0 else '':<10}{text}".rstrip() for number, text in enumerate(texts)]
    findings = (*plan.dataset.problems, *plan.warnings)
    if findings:
        lines += ["Findings", *(f"  {problem.level}: {problem}" for problem in findings)]
    return "\n".join(lines)


def _concept_lines(plan: Plan) -> list[str]:
    rows = []
    kept = Counter(item.concept for item in plan.validation.dataset.items) if plan.validation else Counter()
    quota = sum(bucket.regularisation_count for bucket in plan.buckets)
    for number, concept in enumerate(plan.dataset.concepts):
        count = sum(item.concept == number for item in plan.dataset.items)
        shown = f"× {concept.repeats:,} = {count * concept.repeats:,} samples per epoch"
        if concept.is_regularisation:
            shown = f"regularisation, balanced to {quota:,} samples per epoch in all"
        shown += f", {kept[number]:,} kept for validation" if kept[number] else ""
        trigger = f"trigger: {concept.trigger}" if concept.trigger else ""
        sides = f" at {count // concept.image_count} resolutions" if count > concept.image_count else ""
        rows.append((concept.name, f"{concept.image_count:,}{sides}", shown, trigger))
    return _aligned(rows, "<><<")


def _bucket_lines(plan: Plan) -> list[str]:
    rows = [("size", "images", "samples", "batches", "last batch")]
    for bucket in plan.buckets:
        batches = ceil_div(bucket.sample_count, plan.batch_size)
        fill = f"{bucket.last_batch_fill} of {plan.batch_size}"
        size = f"{bucket.width} × {bucket.height}"
        rows.append((size, f"{bucket.image_count:,}", f"{bucket.sample_count:,}", f"{batches:,}", fill))
    return _aligned(rows, ">>>>>")


def _aligned(rows: Sequence[Sequence[str]], alignments: str) -> list[str]:
    """Rows as lines whose columns, two blanks apart, have equal widths."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, alignments, widths, strict=True)).rstrip()
        for row in rows
    ]
