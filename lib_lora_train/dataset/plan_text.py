"""A plan as text, for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lib_lora_train.core.wording import count
from lib_lora_train.dataset.plan import Plan, ceil_div


def describe_plan(plan: Plan, durations: Sequence[str] = ()) -> str:
    """The plan as aligned lines: images, steps with `durations` in steps, buckets, findings."""
    per_step = plan.batch_size * plan.accumulation
    counted = f"{plan.steps_per_epoch:,} per epoch × {count(plan.epochs, 'epoch')}"
    cut = plan.steps_per_epoch * plan.epochs - plan.total_steps
    sections = {
        "Images": _concept_lines(plan),
        "Steps": [
            f"{plan.total_steps:,} = {counted}" + (f" − {cut:,} (max_steps)" if cut else ""),
            f"{count(per_step, 'image')} per step: batch {plan.batch_size} × accumulation {plan.accumulation}; "
            f"{count(plan.samples_per_epoch, 'sample')} per epoch",
            *durations,
        ],
        "Buckets": _bucket_lines(plan),
    }
    lines = []
    for title, texts in sections.items():
        lines += [f"{title if number == 0 else '':<10}{text}".rstrip() for number, text in enumerate(texts)]
    problems = (*plan.dataset.problems, *plan.warnings)
    if problems:
        lines += ["Findings", *(f"  {problem.level}: {problem}" for problem in problems)]
    return "\n".join(lines)


def _concept_lines(plan: Plan) -> list[str]:
    rows = []
    validation = Counter(item.concept for item in plan.validation.dataset.items) if plan.validation else Counter()
    quota = sum(bucket.regularisation_count for bucket in plan.buckets)
    for number, concept in enumerate(plan.dataset.concepts):
        items = sum(item.concept == number for item in plan.dataset.items)
        samples = f"× {concept.repeats:,} = {count(items * concept.repeats, 'sample')} per epoch"
        if concept.is_regularisation:
            samples = f"regularisation, balanced to {count(quota, 'sample')} per epoch in total"
        samples += f", {validation[number]:,} kept for validation" if validation[number] else ""
        trigger = f"trigger: {concept.trigger}" if concept.trigger else ""
        resolutions = f" at {count(items // concept.image_count, 'resolution')}" if items > concept.image_count else ""
        rows.append((concept.name, f"{concept.image_count:,}{resolutions}", samples, trigger))
    return _align(rows, "<><<")


def _bucket_lines(plan: Plan) -> list[str]:
    rows = [("size", "images", "samples", "batches", "last batch")]
    for bucket in plan.buckets:
        batches = ceil_div(bucket.sample_count, plan.batch_size)
        fill = f"{bucket.last_batch_fill} of {plan.batch_size}"
        size = f"{bucket.width} × {bucket.height}"
        rows.append((size, f"{bucket.image_count:,}", f"{bucket.sample_count:,}", f"{batches:,}", fill))
    return _align(rows, ">>>>>")


def _align(rows: Sequence[Sequence[str]], alignments: str) -> list[str]:
    """Rows as lines with columns of equal width, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{text:{side}{width}}" for text, side, width in zip(row, alignments, widths, strict=True)).rstrip()
        for row in rows
    ]
