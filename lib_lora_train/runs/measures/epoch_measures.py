"""What a run measures after every epoch, and when: each measure is one module of `evaluation`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from lib_lora_train.config.sample_prompts import mentions_trigger, prompt_groups
from lib_lora_train.core.control import RunStoppedError
from lib_lora_train.core.errors import DataError, MemoryFullError
from lib_lora_train.core.events import Event, ImageLosses, Measured, Noted
from lib_lora_train.core.measures import STEADY_LOSS, VALIDATION_LOSS
from lib_lora_train.evaluation.advisor import best_so_far, hint_after
from lib_lora_train.evaluation.fixed_loss import FixedLoss, mean_loss, steady_epochs, steady_loss, validation_loss
from lib_lora_train.evaluation.prompt_effect import PromptEffect, TriggerPrompt
from lib_lora_train.methods.trained_part import TrainedPart
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.runs.measures.sample_measures import SampleMeasures, sample_measures
from lib_lora_train.runs.run_context import RunContext, encode_images, time_phase
from lib_lora_train.training.lease import YieldLease, run_leased_cooperatively

Measure = Callable[[DiffusionModel, TrainedPart], Mapping[str, float]]
"""Measures the model with the adapter in place; called under the lease, first with the adapter switched off."""


@dataclass(frozen=True)
class RunMeasures:
    """The measures of one run; None for those that it does not make. `others` adds more values."""

    validation: FixedLoss | None = None
    steady: FixedLoss | None = None
    effect: PromptEffect | None = None
    samples: SampleMeasures | None = None
    others: Measure | None = None


def prepare_measures(
    run: RunContext, latents: LatentCache, others: Measure | None
) -> Generator[Event, None, RunMeasures]:
    """The measures that the run's settings ask for; encodes the held-out images. `latents` are the training images'."""
    has_features = run.model.kind.has_unet_blocks
    is_drawn = run.config.measure_likeness and has_features and bool(prompt_groups(run.config).concept)
    return RunMeasures(
        validation=(yield from _validation(run)),
        steady=steady_loss(run.plan, latents, run.config) if run.config.measure_steady_loss else None,
        effect=_prompt_effect(run) if run.config.measure_prompts else None,
        samples=sample_measures(run.plan, run.config, run.folder) if is_drawn else None,
        others=others,
    )


def measure_epoch(run: RunContext, measures: RunMeasures, epoch: int) -> Iterator[Event]:
    """Measure an epoch (0: without LoRA) and report the values.

    If memory is full, the epoch is not measured. A run that is stopped is not measured to the end.
    """
    due = _due(run, measures, epoch)
    if due == RunMeasures():
        return
    measuring = run_leased_cooperatively(run.host, run.model, run.control, partial(_measure_all, run, due, epoch))
    try:
        found = yield from time_phase("evaluate", 0, measuring)
    except MemoryFullError:
        text = f"Epoch {epoch} was not measured because the memory is full; the training continues."
        yield Noted("warning", "", f"{text} Close other programs or lower the resolution.")
        return
    for event in found:
        if isinstance(event, Measured):
            run.history.measured.setdefault(epoch, {}).update(event.values)
        yield event
    hint = hint_after(run.history.measured, epoch)
    if hint and epoch < run.plan.epochs and not early_stop_reason(run, epoch):
        yield Noted("hint", "", hint)


def early_stop_reason(run: RunContext, epoch: int) -> str:
    """Why the training ends after this epoch, as a sentence; "" if it continues."""
    patience = run.config.early_stopping_epochs
    best = best_so_far(run.history.measured, epoch) if patience and epoch < run.plan.epochs else None
    return f"{best.sentence}. The training ends here." if best and best.epochs_since >= patience else ""


def _due(run: RunContext, measures: RunMeasures, epoch: int) -> RunMeasures:
    """The measures to make after an epoch."""
    has_samples = epoch > 0 and {0, epoch} <= run.images.keys()
    is_steady_due = epoch % steady_epochs(run.plan) == 0 or epoch == run.plan.epochs
    return replace(
        measures,
        steady=measures.steady if is_steady_due else None,
        effect=measures.effect if epoch > 0 else None,
        samples=measures.samples if has_samples else None,
    )


def _measure_all(
    run: RunContext, due: RunMeasures, epoch: int, model: DiffusionModel, yield_lease: YieldLease
) -> list[Event]:
    """The measured values as events."""

    def yield_or_stop() -> None:
        if run.control.is_stopped:
            raise RunStoppedError
        yield_lease()

    values: dict[str, float] = {}
    others: list[Event] = []
    with suppress(RunStoppedError):
        if due.effect and not due.effect.is_prepared:
            with run.adapter.enabled(False):
                due.effect.prepare(model, yield_or_stop)
        with run.adapter.enabled(epoch > 0), run.eval_weights():
            if due.validation:
                values[VALIDATION_LOSS] = mean_loss(due.validation.measure(model, yield_lease))
            if due.others:
                values.update(due.others(model, run.adapter))
            if due.steady:
                losses = due.steady.measure(model, yield_lease)
                values[STEADY_LOSS] = mean_loss(losses)
                paths = {item: str(run.plan.dataset.items[item].image.path) for item in losses}
                others.append(ImageLosses(epoch, {paths[item]: loss for item, loss in losses.items()}))
            if due.effect:
                values.update(due.effect.measure(model, yield_or_stop))
        if due.samples:
            with run.adapter.enabled(False):
                found = due.samples.measure(model, run.images, epoch, yield_or_stop)
            values.update(found.values)
            others += found.matches
    return [Measured(epoch, values), *others] if values else others


# --- preparing -----------------------------------------------------------------------------------


def _validation(run: RunContext) -> Generator[Event, None, FixedLoss | None]:
    """The loss on held-out images; None if there are none or they cannot be encoded."""
    plan = run.plan.validation
    if plan is None:
        return None
    try:
        latents = yield from encode_images(
            run.model, plan, run.config, host=run.host, folder=run.folder, control=run.control
        )
    except DataError as reason:
        yield Noted("warning", "validation_share", f"{reason} Validation is skipped.")
        return None
    return validation_loss(plan, latents, run.config)


def _prompt_effect(run: RunContext) -> PromptEffect | None:
    """For the first sample prompt with each trigger, or the trigger alone, and the control prompts."""
    concepts = [one for one in run.config.concepts if one.trigger.strip() and not one.is_regularisation]
    texts = [prompt.prompt for prompt in run.prompts]
    groups = prompt_groups(run.config)
    triggers = [
        TriggerPrompt(
            next((texts[n] for n in groups.concept if mentions_trigger(texts[n], [one.trigger])), one.trigger),
            one.trigger,
            one.class_word,
        )
        for one in concepts
    ]
    if not triggers:
        return None
    side = min(run.config.resolution_side, run.model.spec.own_resolution)
    controls = [texts[n] for n in groups.control]
    return PromptEffect(triggers, controls, size=(side, side), clip_skip=run.config.clip_skip)
