"""A run in progress: its parts, how they are put together, and the state from which it can be resumed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from lib_lora_train.config.method_catalog import nearest_lora
from lib_lora_train.config.optimizer_catalog import OPTIMIZER_CATALOG
from lib_lora_train.config.train_config import TrainConfig, config_values, duration_in_steps
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.sample_captions import captions_to_cache
from lib_lora_train.methods.trained_part import NormControl, TrainedPart
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache
from lib_lora_train.training.dataset_changes import plan_images
from lib_lora_train.training.ema import Ema, copy_into, eval_weights
from lib_lora_train.training.grad_scaling import GradScaler
from lib_lora_train.training.loss import LossOptions, loss_options
from lib_lora_train.training.master_weights import MasterWeights
from lib_lora_train.training.oom_fallback import (
    OomFallback,
)
from lib_lora_train.training.optimizers import Optimizer, group_rates
from lib_lora_train.training.parameter_groups import optimizer_for_adapter
from lib_lora_train.training.prior_preservation import PriorPreservation, prior_preservation
from lib_lora_train.training.text_conditions import TextConditions, text_conditions
from lib_lora_train.training.training_state import TrainState, copy_to_cpu, plan_fingerprint, require_same_run


@dataclass(eq=False)
class Training:
    """A run in progress. `step` counts finished optimiser steps; everything else that changes is in the parts."""

    model: DiffusionModel
    adapter: TrainedPart
    plan: Plan
    latents: LatentCache
    config: TrainConfig
    loss_options: LossOptions
    master_weights: MasterWeights
    optimizer: Optimizer
    text_conditions: TextConditions
    prior: PriorPreservation
    grad_scaler: GradScaler | None
    norm_control: NormControl | None
    ema: Ema | None = None
    oom_fallback: OomFallback = field(default_factory=OomFallback)
    step: int = 0
    epoch_loss: float = 0.0
    epoch_count: int = 0
    is_resumable: bool = True
    """Whether `state()` belongs to `step`; False once the weights were rolled back and the optimiser was not."""

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 1."""
        return self.step // self.plan.steps_per_epoch + 1

    @property
    def trained_epoch(self) -> int:
        """The epoch of the last finished step, 0 before the first one."""
        return -(-self.step // self.plan.steps_per_epoch)

    @property
    def text_encoders_stopped(self) -> bool:
        """Whether `stop_text_encoder` has been reached."""
        stop = nearest_lora(self.config).stop_text_encoder
        return bool(stop) and self.step >= duration_in_steps(stop, self.plan.total_steps)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapter's parameters of all groups."""
        return [parameter for group in self.adapter.groups.values() for parameter in group]

    def stop_text_encoders(self) -> None:
        """Freeze the text encoders; every caption is then encoded once more and cached."""
        for name, group in self.adapter.groups.items():
            if name != "unet":
                for parameter in group:
                    parameter.requires_grad_(False)
                    parameter.grad = None
        self.text_conditions = text_conditions(self.config, trained=False)

    def eval_weights(self) -> AbstractContextManager[None]:
        """Inside, the adapter holds the weights to save, sample and validate with; see `ema.eval_weights`."""
        if not self.ema and not OPTIMIZER_CATALOG[self.config.optimizer].may_average_weights:
            return nullcontext()
        return eval_weights(self.master_weights, self.optimizer, self.ema)

    def captions_to_cache(self) -> list[str]:
        """The captions to encode before the run; none while a text encoder is trained."""
        return [] if self.text_conditions.trained else captions_to_cache(self.plan, self.config)

    def state(self) -> TrainState:
        """Everything needed to resume from here; exact whenever the loop has yielded."""
        return TrainState(
            step=self.step,
            parameters=copy_to_cpu({name: [p.detach() for p in group] for name, group in self.adapter.groups.items()}),
            optimizer=copy_to_cpu(self.optimizer.state()),
            loss_scale=copy_to_cpu(self.grad_scaler.state()) if self.grad_scaler else {},
            epoch_losses=(self.epoch_loss, self.epoch_count),
            config=config_values(self.config),
            fingerprint=plan_fingerprint(self.plan),
            images=plan_images(self.plan),
            average=copy_to_cpu(self.ema.means) if self.ema else [],
            model=self.model.identity.values(),
        )

    def load_state(self, state: TrainState) -> None:
        """Continue from a state, whose parameters are on the adapter already."""
        self.step = state.step
        self.epoch_loss, self.epoch_count = state.epoch_losses
        self.optimizer.load_state(state.optimizer)
        if self.grad_scaler and state.loss_scale:
            self.grad_scaler.load_state(state.loss_scale)
        if self.ema:
            self.ema.load_state(state.average)


def start_training(
    model: DiffusionModel,
    adapter: TrainedPart,
    *,
    plan: Plan,
    latents: LatentCache,
    config: TrainConfig,
    state: TrainState | None = None,
    text_cache: Path | None = None,
) -> Training:
    """A run before its first step, or resumed from `state`; the adapter is on the model already.

    Encoded captions are cached in the folder `text_cache`, if it is given and no adapter changes the text encoders.

    ConfigError if the optimiser cannot be created from the settings, a loss weight is not for this kind of model, or
    the state belongs to another run.
    """
    if state:
        require_same_run(state, config, plan)
        for name, group in adapter.groups.items():
            copy_into(group, state.parameters[name])  # before the optimiser and the EMA copy them
    rates = group_rates(config, list(adapter.groups))
    master_weights = MasterWeights(adapter.groups)
    uses_fp16 = torch.float16 in (model.dtype, adapter.dtype)
    conditions = text_conditions(
        config,
        trained=any(name != "unet" and rates[name] > 0 for name in adapter.groups),
        folder=text_cache if list(adapter.groups) == ["unet"] else None,
    )
    training = Training(
        model=model,
        adapter=adapter,
        plan=plan,
        latents=latents,
        config=config,
        loss_options=loss_options(config, model.schedule.prediction_type),
        master_weights=master_weights,
        optimizer=optimizer_for_adapter(adapter, master_weights, rates, config=config),
        text_conditions=conditions,
        prior=prior_preservation(config, adapter, conditions),
        grad_scaler=GradScaler(model.device) if uses_fp16 else None,
        norm_control=adapter.norm_control(config),
    )
    if config.ema_decay:
        training.ema = Ema(training.parameters, config.ema_decay)
    if state:
        training.load_state(state)
    if training.text_encoders_stopped:
        training.stop_text_encoders()
    return training
