"""The training loop, in the order in which things happen: a run's turns, their steps.

    training = start_training(model, adapter, plan=plan, latents=latents, config=config)
    for event in train(training, host=host, control=control): ...

The model belongs to the host. The loop leases it for turns of whole optimiser steps and yields between turns only, so
whoever handles an event may lease it too: to save, to generate samples, to validate. It does no other input or output.

What is separate has the usual name: `training_run` (a run's parts and its state), `lease` and `wait_for_model`
(borrowing the model), `oom_fallback`, `grad_scaling`, `lr_schedule`; `step` has a micro-batch's draws and its loss.

B: samples of a micro-batch; C, h, w: a latent's channels, height and width; L: tokens of a caption; D: their width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lib_lora_train.adapters.registry import dropout_from_config
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ModelUnavailableError, TrainingError
from lib_lora_train.core.events import EpochDone, Event, Noted, Progress, StateChanged, StepDone
from lib_lora_train.core.memory_errors import is_out_of_memory, memory_name
from lib_lora_train.dataset.plan import MicroBatch, epoch_steps
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.training.ema import copy_into
from lib_lora_train.training.grad_scaling import clip_gradients
from lib_lora_train.training.lease import ModelHost, run_leased
from lib_lora_train.training.lr_schedule import lr_factor, lr_schedule
from lib_lora_train.training.oom_fallback import (
    describe_fallback,
    gradient_checkpointing,
    next_fallback,
    out_of_memory_message,
    split_micro_batches,
)
from lib_lora_train.training.step import Batch, batch_loss, draw_batch
from lib_lora_train.training.step_checks import is_finite, not_finite_message
from lib_lora_train.training.training_run import Training

_TURN_SECONDS = 1.0  # how long the page waits for progress at most; other waiters are looked for after every step


# --- the loop -------------------------------------------------------------------------------------


def train(training: Training, *, host: ModelHost, control: Control) -> Iterator[Event]:
    """Run the remaining steps and yield what happens; ends early, after a whole step, once `control` is stopped.

    When memory runs out, the step is repeated in a way that needs less (see `OomFallback`), with a warning. Raises
    TrainingError when nothing is left to try, or when the loss is NaN; the adapter then has the last good weights.
    """
    plan = training.plan
    while training.step < plan.total_steps:
        epoch, first_step = training.epoch, (training.epoch - 1) * plan.steps_per_epoch
        steps = epoch_steps(plan, training.config.seed, epoch, lambda: control.is_stopped)  # () if stopped
        while training.step < min(first_step + plan.steps_per_epoch, plan.total_steps):
            # Between turns nothing is leased: whoever handles one of these events may lease the model.
            was_paused = control.is_paused
            while control.is_paused:
                yield StateChanged("paused")  # again after every request, so that Save and Sample work in a pause too
                control.wait_for_request()
            if was_paused and not control.is_stopped:
                yield StateChanged("running")
            if control.is_stopped:
                yield StateChanged("stopping")
                return
            turn = partial(_run_turn, training, steps[training.step - first_step :], host, control)
            try:
                result = yield from run_leased(host, training.model, control, turn)
            except ModelUnavailableError:  # stopped while another model was loaded
                continue
            yield from result.events
            if result.failure:
                raise TrainingError(result.failure)
            yield Progress("train", training.step, plan.total_steps)
        mean_loss = training.epoch_loss / max(1, training.epoch_count)
        training.epoch_loss, training.epoch_count = 0.0, 0  # before the event: a state saved now starts the next epoch
        yield EpochDone(epoch, training.step, mean_loss)


def is_due(config: TrainConfig, step: int) -> bool:
    """Whether something is written after this very step, so that the turn ends with it."""
    every = (config.save_every_n_steps, config.save_state_every_n_steps, config.sample_every_n_steps)
    return any(number and step % number == 0 for number in every)


@dataclass(frozen=True)
class _TurnResult:
    """What happened in a turn, and why the run cannot continue ("" if it can)."""

    events: Sequence[Event]
    failure: str = ""


@dataclass(frozen=True, eq=False)
class _StepResult:
    """A finished step. `numbers` are still on the device: loss, gradient norm, loss scale, and max norm's three."""

    step: int
    epoch: int
    rates: dict[str, float]
    numbers: Tensor  # (3,) or (6,)

    def event(self, row: Sequence[float], seconds: float) -> StepDone:
        """The step's event, from its numbers as read from the device."""
        norms = (row[3], row[4], row[5]) if len(row) > 3 else None
        return StepDone(self.step, self.epoch, row[0], self.rates, row[1], seconds, norms)


class _TornStepError(Exception):
    """Memory ran out inside the optimiser's step: some weights may have moved and others not."""


def _run_turn(
    training: Training, steps: Sequence[Sequence[MicroBatch]], host: ModelHost, control: Control, model: DiffusionModel
) -> _TurnResult:
    """Run one optimiser step, and more as long as nobody waits for the model."""
    config = training.config
    began, first_step = time.perf_counter(), training.step
    last_good = [parameter.detach().clone() for parameter in training.parameters]  # a NaN is noticed only at the end
    finished: list[_StepResult] = []
    warnings: list[Event] = []
    failure = ""
    with gradient_checkpointing(model.unet, config.gradient_checkpointing or training.oom_fallback.checkpointing):
        try:
            for step in steps:
                finished += _run_step(training, model, step)
                is_late = time.perf_counter() - began > _TURN_SECONDS
                if is_late or host.has_waiters() or control.has_requests or is_due(config, training.step):
                    break
        except _TornStepError:
            _roll_back(training, last_good, first_step)
            device = model.device.type
            return _TurnResult([], out_of_memory_message(first_step + 1, config, training.oom_fallback, device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            warnings, failure = _fall_back(training)

    # The turn's only wait for the device. Each row: loss, gradient norm, loss scale, and max norm's three numbers.
    rows = torch.stack([result.numbers for result in finished]).tolist() if finished else []
    bad = next((i for i, row in enumerate(rows) if not is_finite(*row[:3])), None)
    if bad is not None:
        failure = not_finite_message(finished[bad].step, rows[bad][0])
        finished, rows = finished[:bad], rows[:bad]
        _roll_back(training, last_good, first_step)
    seconds = (time.perf_counter() - began) / max(1, len(finished))
    training.epoch_loss += sum(row[0] for row in rows)
    training.epoch_count += len(rows)
    done = [result.event(row, seconds) for result, row in zip(finished, rows, strict=True)]
    return _TurnResult([*done, *warnings], failure)


def _run_step(training: Training, model: DiffusionModel, step: Sequence[MicroBatch]) -> list[_StepResult]:
    """Forward, backward, optimiser; empty if none of the images could be encoded. Never waits for the device.

    _TornStepError if memory runs out inside the optimiser's step.
    """
    config, grad_scaler = training.config, training.grad_scaler
    if training.text_encoders_stopped and training.text_conditions.trained:
        training.stop_text_encoders()
    usable = sum(item in training.latents for micro_batch in step for item in micro_batch.items)
    loss = accumulate_gradients(training, model, step=step, usable=usable)  # ()
    epoch = training.epoch
    factor = lr_factor(lr_schedule(config, training.plan.total_steps), training.step)
    training.step += 1
    if not usable:
        return []

    scale = grad_scaler.value if grad_scaler else None
    try:
        with training.master_weights.step(config.seed, training.step):
            if training.norm_control or training.master_weights.is_rounded:
                training.optimizer.reload_parameters()  # they are not where the last step left them
            norm = clip_gradients(training.master_weights.parameters, config.max_grad_norm, scale=scale)  # ()
            training.optimizer.step(factor)
    except (RuntimeError, MemoryError) as reason:
        if not is_out_of_memory(reason):
            raise
        raise _TornStepError from reason
    numbers = torch.stack([loss, norm, torch.ones_like(norm) if scale is None else scale])  # (3,)
    if training.norm_control:
        numbers = torch.cat([numbers, training.norm_control.apply()])  # (6,)
    if grad_scaler:
        grad_scaler.update(norm)
    if training.ema:
        training.ema.update(training.step)

    rates = training.optimizer.effective_rates()
    if training.text_encoders_stopped and not training.text_conditions.trained:
        rates = {name: rate if name.startswith("unet") else 0.0 for name, rate in rates.items()}
    return [_StepResult(training.step, epoch, rates, numbers)]


def accumulate_gradients(
    training: Training, model: DiffusionModel, *, step: Sequence[MicroBatch], usable: int
) -> Tensor:
    """The step's loss, 0-d: a mean over its `usable` images. Its gradients are added, times float16's loss scale.

    A separate function, so that the last micro-batch is freed before the optimiser needs memory.
    """
    config, grad_scaler = training.config, training.grad_scaler
    total = torch.zeros((), device=model.device)
    for number, micro_batch in enumerate(split_micro_batches(step, training.oom_fallback.split)):
        batch = draw_batch(micro_batch, training.plan, training.latents, config=config, model=model)  # (B, C, h, w)
        if batch is None:
            continue
        with training.adapter.training(dropout_from_config(config), config.seed, training.step, number):
            for losses in _micro_batch_losses(training, model, batch):
                loss = losses / usable  # ()
                scaled = loss * grad_scaler.value if grad_scaler else loss
                scaled.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
    return total


def _micro_batch_losses(training: Training, model: DiffusionModel, batch: Batch) -> Iterator[Tensor]:
    """Sums over the micro-batch, (): of the images' losses, then of what must not change, if anything.

    One by one, so that the first one's activations are freed before the second needs memory.
    """
    masked = training.prior.masked_prior(model, batch)
    condition = training.text_conditions.encode(model, batch.captions)  # (B, L, D)
    yield batch_loss(model, batch, condition, training.loss_options, masked)
    preserved = training.prior.loss(model, batch, training.text_conditions)
    if preserved is not None:
        yield preserved


# --- when something goes wrong --------------------------------------------------------------------


def _fall_back(training: Training) -> tuple[list[Event], str]:
    """Discard the step that did not fit and switch to what needs less memory: the warning, or why the run must end."""
    for parameter in training.parameters:
        parameter.grad = None
    fallback = next_fallback(training.oom_fallback, training.config)
    if fallback is None:
        device = training.model.device.type
        return [], out_of_memory_message(training.step + 1, training.config, training.oom_fallback, device)
    training.oom_fallback = fallback
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the failed step's blocks are scattered; the next one needs them whole
    text = f"Step {training.step + 1} did not fit into {memory_name(training.model.device.type)}: "
    return [Noted("warning", "batch_size", f"{text}{describe_fallback(fallback, training.config)}.")], ""


def _roll_back(training: Training, parameters: Sequence[Tensor], step: int) -> None:
    training.step, training.is_resumable = step, False
    copy_into(training.parameters, parameters)
