"""The advisor: names the epoch of a run to use and its strength, with reasons, and says what to change next time.

It reads what the run has measured: the trials of `strength_search` decide, losses and the effect on prompts explain.
The shapes of a loss curve and the remedies are those of the community's guides. Does not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean, variance
from typing import Literal

from lib_lora_train.core.measures import (
    BLEED,
    COPIES,
    LIKENESS,
    STEADY_LOSS,
    VALIDATION_LOSS,
    measure_info,
    measure_title,
)
from lib_lora_train.core.wording import count, join_names, percent
from lib_lora_train.evaluation.strength_search import Trial, best_trial, gains, harms, score

Measured = Mapping[int, Mapping[str, float]]
"""The measures of each epoch by name; epoch 0 is without LoRA."""

LossShape = Literal["", "falls", "turns", "diverges", "plunges"]

_LEAST_SCORE = 0.0  # as much as no LoRA is worth
_NOISE = 0.1  # of the fall of a loss: less than that is no rise
_PLUNGE = 1.5  # how much faster a loss falls at the end than before, if it copies
_PATIENCE = 3  # epochs without a gain before the best one is named
_MUCH_BLEED, _ROUGH = 0.5, 2.0


@dataclass(frozen=True)
class Advice:
    """The epoch to use, 0 if none is good, at a strength. Each reason and remedy is a sentence.

    `is_sure` is False if other epochs may be as good; a reason says then what would settle it.
    """

    epoch: int
    strength: float
    is_sure: bool
    reasons: tuple[str, ...]
    remedies: tuple[str, ...] = ()


def advise(trials: Sequence[Trial], measured: Measured) -> Advice | None:
    """The advice for a run; None before any of its epochs was tried."""
    if not trials:
        return None
    best = best_trial(trials)
    rivals = _rivals(best, trials)
    reasons = [_describe(best), *_against_others(best, trials), *_loss_reasons(measured)]
    if score(best) <= _LEAST_SCORE:
        reasons = [f"The best trial is epoch {best.epoch} at strength {best.strength:g}. {_describe(best)}"]
        return Advice(0, 1.0, True, tuple(reasons), tuple(_remedies(best, trials, measured)))
    if rivals:
        names = join_names([str(epoch) for epoch in sorted({best.epoch, *rivals})])
        reasons.append(
            f"Epochs {names} are equally good as far as these samples show. More sample prompts would settle it."
        )
    return Advice(best.epoch, best.strength, not rivals, tuple(reasons), tuple(_remedies(best, trials, measured)))


def advise_by_losses(measured: Measured, epochs: Collection[int]) -> Advice | None:
    """The advice among these epochs where images cannot be compared; None without a validation loss that fell.

    The strength stays 1, and the advice is never sure: the loss is of held-out images, not of what is drawn.
    """
    losses = {epoch: loss for epoch, loss in _series(measured, VALIDATION_LOSS).items() if epoch in epochs}
    before = measured.get(0, {}).get(VALIDATION_LOSS)
    if not losses or (before is not None and min(losses.values()) >= before):
        return None
    best = min(losses, key=lambda epoch: losses[epoch])
    compared = f", {before:.4g} before training" if before is not None else ""
    last = max(losses)
    at_last = "" if last == best else f" and {losses[last]:.4g} after epoch {last}, the last one"
    reasons = [
        f"The validation loss is lowest after epoch {best}: {losses[best]:.4g}{compared}{at_last}.",
        "Samples were not compared and strengths were not tested. Compare the epochs in the grid, too.",
    ]
    return Advice(best, 1.0, False, tuple(reasons), tuple(_measured_remedies(measured, best)))


# --- reasons -------------------------------------------------------------------------------------


def _describe(trial: Trial) -> str:
    """Its numbers as a sentence."""
    likeness, change = _numbers(trial)
    return f"Likeness to the training images is {likeness}" + (
        f", control images change by {change}." if change else "."
    )


def _against_others(best: Trial, trials: Sequence[Trial]) -> Iterator[str]:
    """Why not another strength, and why not the last epoch."""
    own = sorted((trial.strength, _pair(trial)) for trial in trials if trial.epoch == best.epoch)
    beside = [*[one for one in own if one[0] < best.strength][-1:], *[one for one in own if one[0] > best.strength][:1]]
    if beside:
        texts = (f"{numbers} at strength {strength:g}" for strength, numbers in beside)
        yield f"{'They are' if best.change else 'It is'} {', '.join(texts)}."
    last = max(trial.epoch for trial in trials)
    if last != best.epoch:
        at_last = best_trial(trial for trial in trials if trial.epoch == last)
        yield f"Epoch {last}, the last one, has {_pair(at_last)} at strength {at_last.strength:g}."


def _numbers(trial: Trial) -> tuple[str, str]:
    """Likeness and change in percent; "" without control images."""
    return percent(fmean(trial.likeness)), percent(fmean(trial.change)) if trial.change else ""


def _pair(trial: Trial) -> str:
    """`63% and 16%`."""
    return " and ".join(filter(None, _numbers(trial)))


def _rivals(best: Trial, trials: Sequence[Trial]) -> list[int]:
    """Other epochs with a trial that is within one standard error of the best one, image by image."""
    found = {trial.epoch for trial in trials if trial.epoch != best.epoch and is_equal(trial, best)}
    return sorted(found)


def is_equal(trial: Trial, best: Trial) -> bool:
    """Whether the difference of two trials is at most the standard error of the paired differences of their images."""
    more = [b - t for t, b in zip(gains(trial), gains(best), strict=True)]
    worse = [b - t for t, b in zip(harms(trial), harms(best), strict=True)] or [0.0]
    error = sqrt(sum(variance(values) / len(values) for values in (more, worse) if len(values) > 1))
    return fmean(more) - fmean(worse) <= error


# --- losses --------------------------------------------------------------------------------------


def loss_shape(losses: Mapping[int, float]) -> LossShape:
    """What a loss does over the epochs; epoch 0 is without LoRA.

    `falls`, `turns` (falls to a minimum and rises again), `diverges` (ends above where it began) or `plunges` (falls
    faster and faster). "" if there are fewer than three epochs.
    """
    epochs = sorted(losses)
    values = [losses[epoch] for epoch in epochs]
    if len(values) < 3:
        return ""
    lowest = min(values)
    fall, rise = values[0] - lowest, values[-1] - lowest
    if values[-1] > values[0]:
        return "diverges"
    if rise > _NOISE * fall:
        return "turns"
    falls = [before - after for before, after in pairwise(values[1:])]
    if len(falls) >= 3 and 0 < falls[-3] < falls[-2] < falls[-1] and falls[-1] > _PLUNGE * falls[0]:
        return "plunges"
    return "falls"


def _loss_reasons(measured: Measured) -> Iterator[str]:
    """What the losses say about the epochs after the best one."""
    for name in (VALIDATION_LOSS, STEADY_LOSS):
        losses = _series(measured, name)
        if loss_shape(losses) == "turns":
            lowest = min(losses, key=lambda one: losses[one])
            yield f"The {measure_title(name).lower()} is lowest after epoch {lowest} and rises from there."


def _series(measured: Measured, name: str) -> dict[int, float]:
    return {epoch: values[name] for epoch, values in sorted(measured.items()) if name in values}


# --- while training ------------------------------------------------------------------------------


def hint_after(measured: Measured, epoch: int) -> str:
    """What the measures say after an epoch of a run that continues, as a sentence; "" if nothing new.

    Each is said once: that the run has diverged, and which epoch is the best after three others were not better.
    """
    known = {one: values for one, values in measured.items() if one <= epoch}
    losses = _series(known, STEADY_LOSS)
    before = {one: loss for one, loss in losses.items() if one < epoch}
    if epoch in losses and loss_shape(losses) == "diverges" != loss_shape(before):
        return "The steady loss is higher than at the start: the run has diverged. Stop it and lower the learning rate."
    best = best_so_far(measured, epoch)
    return f"{best.sentence}." if best and best.epochs_since == _PATIENCE else ""


@dataclass(frozen=True)
class BestSoFar:
    """The best epoch of a run that continues, by one measure, and how many measured epochs came after it."""

    epoch: int
    measure: str
    epochs_since: int

    @property
    def sentence(self) -> str:
        """`Epoch 6 has the lowest validation loss so far; the 3 epochs after it were not better`."""
        word = "lowest" if measure_info(self.measure).better == "lower" else "highest"
        after = count(self.epochs_since, "epoch after it was", "epochs after it were").removeprefix("1 ")
        return f"Epoch {self.epoch} has the {word} {measure_title(self.measure).lower()} so far; the {after} not better"


def best_so_far(measured: Measured, epoch: int) -> BestSoFar | None:
    """The best epoch up to `epoch` by the validation loss, else by likeness; None if `epoch` has neither."""
    for name in (VALIDATION_LOSS, LIKENESS):
        values = {one: value for one, value in _series(measured, name).items() if 0 < one <= epoch}
        if epoch in values:
            sign = 1 if measure_info(name).better == "lower" else -1
            best = min(values, key=lambda one: sign * values[one])
            return BestSoFar(best, name, len(values) - 1 - list(values).index(best))
    return None


# --- what to change ------------------------------------------------------------------------------


def _remedies(best: Trial, trials: Sequence[Trial], measured: Measured) -> Iterator[str]:
    """What to change in the next run, the most certain first."""
    has_diverged = loss_shape(_series(measured, STEADY_LOSS)) == "diverges"  # then more training is no remedy
    if not has_diverged and (best.strength > 1 or score(best) <= _LEAST_SCORE):
        is_last = best.epoch == max(trial.epoch for trial in trials)
        more = "Train for more epochs" if is_last else "Raise the learning rate"
        yield f"The LoRA is undertrained: it needs more strength than 1. {more}."
    elif not has_diverged and best.strength < 1:
        yield "The LoRA is overtrained: it is best below strength 1. Save earlier epochs, or lower the learning rate."
    yield from _measured_remedies(measured, best.epoch)
    if best.roughness >= _ROUGH:
        yield (
            f"The roughness of plain areas is {best.roughness:.1f} × that without the LoRA, the first sign of burning. "
            "Look for duplicates, or lower the learning rate."
        )


def _measured_remedies(measured: Measured, epoch: int) -> Iterator[str]:
    """Those that follow from the measures alone."""
    shape = loss_shape(_series(measured, STEADY_LOSS))
    if shape == "diverges":
        yield "The steady loss is higher than at the start: the run has diverged. Lower the learning rate to a third."
    values = measured.get(epoch, {})
    if values.get(COPIES, 0) > 0:
        yield "Some samples are nearly copies of training images. Look for duplicates, or add more varied images."
    elif shape == "plunges":
        yield "The steady loss falls faster and faster: the LoRA copies the dataset. Train for fewer epochs."
    if values.get(BLEED, 0) >= _MUCH_BLEED:
        share = percent(values[BLEED])
        text = f"{share} of what the trigger does happens to the class word too."
        yield f"{text} Add regularisation images, or set prior_preservation."
