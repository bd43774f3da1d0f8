"""The training loop: plan and latents in, events and a trained adapter out.

    training = start_training(model, adapter, plan=plan, latents=latents, config=config)
    for event in train(training, host=host, control=control): ...

The loop borrows the model from the host in turns of whole optimiser steps and yields between turns only, so
whoever listens may take the lease: to save, to draw samples, to measure. It performs no other input or output.
Losses stay on the device during a turn and are read once at its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.adapters.max_norm import NormLimit
from lib_lora_train.adapters.registry import chance_from_config
from lib_lora_train.config.optimizer_catalog import KINDS
from lib_lora_train.config.train_config import TrainConfig, config_values, steps_of
from lib_lora_train.core.errors import ModelAwayError, TrainingError
from lib_lora_train.core.events import EpochDone, Event, Noted, Progress, StateChanged
from lib_lora_train.dataset.plan import MicroBatch, Plan, epoch_steps
from lib_lora_train.dataset.sample_captions import captions_ahead
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentStore
from lib_lora_train.training.control import Control
from lib_lora_train.training.ema import Ema, weights_for_use
from lib_lora_train.training.grad_scaling import GradScaler, clip_gradients
from lib_lora_train.training.lease import Lender, leased
from lib_lora_train.training.loss import LossRule
from lib_lora_train.training.lr_schedule import lr_factor, lr_schedule
from lib_lora_train.training.master_weights import MasterWeights
from lib_lora_train.training.oom_fallback import (
    OomFallback,
    checkpointing,
    describe_relief,
    more_relief,
    out_of_memory,
    parted,
)
from lib_lora_train.training.optimizers import Optimizer
from lib_lora_train.training.step import batch_loss, draw_batch
from lib_lora_train.training.step_result import StepResult, is_sound, not_a_number
from lib_lora_train.training.text_conditions import TextConditions, text_conditions
from lib_lora_train.training.training_state import TrainState, copied, plan_fingerprint

_TURN_SECONDS = 1.0  # the longest time without news for the page; who waits elsewhere is looked at after each step
Step = Sequence[MicroBatch]


@dataclass(eq=False)
class Training:
    """A run under way. `step` counts the optimiser steps taken; all else that changes lies in the parts."""

    model: DiffusionModel
    adapter: Adapter
    plan: Plan
    latents: LatentStore
    config: TrainConfig
    loss_rule: LossRule
    working: MasterWeights
    stepper: Optimizer
    conditions: TextConditions
    scale: GradScaler | None
    average: Ema | None
    norm_limit: NormLimit | None = None
    relief: OomFallback = field(default_factory=OomFallback)
    step: int = 0
    epoch_loss: float = 0.0
    epoch_count: int = 0
    is_exact: bool = True
    """Whether `state` is the one after `step`; not after a NaN, which only the weights were saved from."""

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, from 1."""
        return self.step // self.plan.steps_per_epoch + 1

    @property
    def text_is_over(self) -> bool:
        """Whether the text encoders have stopped learning."""
        stop = self.config.stop_text_encoder
        return bool(stop) and self.step >= steps_of(stop, self.plan.total_steps)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters of all groups."""
        return [parameter for group in self.adapter.groups.values() for parameter in group]

    def for_use(self) -> AbstractContextManager[None]:
        """Inside, the adapter holds the weights to be saved, drawn with and measured; see `weights_for_use`."""
        if not self.average and not KINDS[self.config.optimizer].has_own_weights:
            return nullcontext()
        return weights_for_use(self.working, self.stepper, self.average)

    def captions_ahead(self) -> list[str]:
        """The captions to encode before the run; none while a text encoder learns."""
        return [] if self.conditions.trained else captions_ahead(self.plan, self.config)

    def state(self) -> TrainState:
        """Where the run stands; exact whenever the loop has yielded."""
        return TrainState(
            step=self.step,
            parameters=copied({name: [p.detach() for p in group] for name, group in self.adapter.groups.items()}),
            optimizer=copied(self.stepper.state()),
            loss_scale=copied(self.scale.state()) if self.scale else {},
            epoch_losses=(self.epoch_loss, self.epoch_count),
            config=config_values(self.config),
            fingerprint=plan_fingerprint(self.plan),
            average=copied(self.average.means) if self.average else [],
        )


def stop_text_encoders(training: Training) -> None:
    """From here on they stay as they are; what they say of a caption is then encoded once and kept."""
    for name, group in training.adapter.groups.items():
        if name != "unet":
            for parameter in group:
                parameter.requires_grad_(False)
                parameter.grad = None
    training.conditions = text_conditions(training.config, trained=False)


def train(training: Training, *, host: Lender, control: Control) -> Iterator[Event]:
    """Take the run's remaining steps, and tell of each; ends early, after a whole step, when `control` is stopped.

    When memory runs out, the step is taken again in a way that needs less (see `OomFallback`), and that is told. Raises
    TrainingError, with the adapter as it was at the last good step, when nothing helps, or when the loss is no number
    any more.
    """
    plan = training.plan
    while training.step < plan.total_steps:
        epoch, first = training.epoch, (training.epoch - 1) * plan.steps_per_epoch
        steps = epoch_steps(plan, training.config.seed, epoch)
        while training.step < first + len(steps):
            yield from _hold(control)
            if control.stopped:
                yield StateChanged("stopping")
                return
            turn = _Turn(training, steps[training.step - first :], host, control)
            try:
                news = yield from leased(host, training.model, control, turn.take)
            except ModelAwayError:  # stopped while the model was away
                continue
            yield from news.told
            if news.failure:
                raise TrainingError(news.failure)
            yield Progress("train", training.step, plan.total_steps)
        mean = training.epoch_loss / max(1, training.epoch_count)
        training.epoch_loss, training.epoch_count = 0.0, 0  # before it is told: a state kept now begins the next epoch
        yield EpochDone(epoch, training.step, mean)


def is_due(config: TrainConfig, step: int) -> bool:
    """Whether something has to be written after this very step, so that the turn ends with it."""
    every = (config.save_every_n_steps, config.save_state_every_n_steps, config.sample_every_n_steps)
    return any(number and step % number == 0 for number in every)


def _hold(control: Control) -> Iterator[Event]:
    """While paused: nothing but news. Each piece of it is told, so that saving and sampling work in a pause too."""
    was_paused = control.paused
    while control.paused:
        yield StateChanged("paused")
        control.wait_for_news()
    if was_paused and not control.stopped:
        yield StateChanged("running")


# --- a turn -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Turn:
    """The steps that may be taken while the model is lent."""

    training: Training
    steps: Sequence[Step]
    host: Lender
    control: Control

    def take(self, model: DiffusionModel) -> _News:
        """See `_take_turn`."""
        on = self.training.config.gradient_checkpointing or self.training.relief.checkpointing
        with checkpointing(model.unet, on):
            return _take_turn(self.training, model, steps=self.steps, host=self.host, control=self.control)


@dataclass(frozen=True)
class _News:
    """What a turn did, as events, and why the run cannot go on ("" if it can)."""

    told: Sequence[Event]
    failure: str = ""


class _TornStepError(Exception):
    """Memory ran out within the optimiser's own step, of which nobody knows how far it came."""


def _take_turn(
    training: Training, model: DiffusionModel, *, steps: Sequence[Step], host: Lender, control: Control
) -> _News:
    """Take one step, and more while nobody waits."""
    began, good, first = time.perf_counter(), [p.detach().clone() for p in training.parameters], training.step
    taken: list[StepResult] = []
    relieved: list[Event] = []
    failure = ""
    try:
        for step in steps:
            taken += _take_step(training, model, step)
            late = time.perf_counter() - began > _TURN_SECONDS
            if late or host.is_wanted() or control.needs_attention or is_due(training.config, training.step):
                break
    except torch.cuda.OutOfMemoryError:
        relieved, failure = _relieve(training)
    except _TornStepError:
        _restore(training, good, first)
        return _News([], out_of_memory(first + 1, training.config))
    numbers = torch.stack([one.numbers for one in taken]).tolist() if taken else []  # the turn's only wait
    bad = next((i for i, row in enumerate(numbers) if not is_sound(*row[:3])), None)
    if bad is not None:
        failure = not_a_number(taken[bad].step, numbers[bad][0])
        taken, numbers = taken[:bad], numbers[:bad]
        _restore(training, good, first)
    seconds = (time.perf_counter() - began) / max(1, len(taken))
    training.epoch_loss += sum(row[0] for row in numbers)
    training.epoch_count += len(numbers)
    told = [one.told(row, seconds) for one, row in zip(taken, numbers, strict=True)]
    return _News([*told, *relieved], failure)


def _relieve(training: Training) -> tuple[list[Event], str]:
    """Forget the step that did not fit and choose what saves memory; the reason if nothing is left to choose."""
    for parameter in training.parameters:
        parameter.grad = None
    relief = more_relief(training.relief, training.config)
    if relief is None:
        return [], out_of_memory(training.step + 1, training.config)
    training.relief = relief
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the pieces of the failed step lie scattered; the next one needs them whole
    text = f"Step {training.step + 1} did not fit into the graphics card's memory: "
    return [Noted("warning", "batch_size", f"{text}{describe_relief(relief, training.config)}.")], ""


def _take_step(training: Training, model: DiffusionModel, step: Step) -> list[StepResult]:
    """Forward, backward, optimiser; nothing is read from the device. Empty if none of the images is usable."""
    if training.text_is_over and training.conditions.trained:
        stop_text_encoders(training)
    usable = sum(item in training.latents for micro_batch in step for item in micro_batch.items)
    loss = _add_gradients(training, model, step=step, usable=usable)
    epoch, factor = training.epoch, _factor(training)
    training.step += 1
    if not usable:
        return []
    numbers = _optimise(training, loss, factor=factor)
    return [StepResult(training.step, epoch, _rates(training), numbers)]


def _add_gradients(training: Training, model: DiffusionModel, *, step: Step, usable: int) -> Tensor:
    """The step's loss, 0-d, a mean over its `usable` images; its gradients are added, times float16's loss scale."""
    config = training.config
    total = torch.zeros((), device=model.device)
    for number, micro_batch in enumerate(parted(step, training.relief.split)):
        batch = draw_batch(micro_batch, training.plan, training.latents, config=config, model=model)
        if batch is None:
            continue
        with training.adapter.training(chance_from_config(config), config.seed, training.step, number):
            condition = training.conditions.of(model, batch.captions)
            loss = batch_loss(model, batch, condition, training.loss_rule) / usable
            scaled = loss * training.scale.value if training.scale else loss
            scaled.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _optimise(training: Training, loss: Tensor, *, factor: float) -> Tensor:
    """The parameters moved by their gradients; loss, gradient norm, loss scale and limited norms, on the device.

    _TornStepError if memory runs out on the way.
    """
    config, scale = training.config, training.scale.value if training.scale else None
    try:
        with training.working.step(config.seed, training.step):
            if training.norm_limit or training.working.is_rounded:
                training.stepper.take_over()
            norm = clip_gradients(training.working.parameters, config.max_grad_norm, scale=scale)
            training.stepper.step(factor)
    except torch.cuda.OutOfMemoryError as reason:
        raise _TornStepError from reason
    numbers = torch.stack([loss, norm, torch.ones_like(norm) if scale is None else scale])
    if training.norm_limit:
        numbers = torch.cat([numbers, training.norm_limit.apply()])
    if training.scale:
        training.scale.update(norm)
    if training.average:
        training.average.update(training.step)
    return numbers


def _rates(training: Training) -> dict[str, float]:
    """The step's learning rates; 0 for text encoders that learn no more."""
    over = training.text_is_over and not training.conditions.trained
    rates = training.stepper.effective_rates()
    return {name: 0.0 if over and not name.startswith("unet") else rate for name, rate in rates.items()}


def _factor(training: Training) -> float:
    return lr_factor(lr_schedule(training.config, training.plan.total_steps), training.step)


def _restore(training: Training, good: list[Tensor], step: int) -> None:
    training.step, training.is_exact = step, False
    with torch.no_grad():
        for parameter, before in zip(training.parameters, good, strict=True):
            parameter.copy_(before)
