"""The beginning of a run: its parts made of plan, settings and model, or put where a state left them."""

from __future__ import annotations

from pathlib import Path

import torch

from lib_lora_train.adapters.inject import Adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentStore
from lib_lora_train.training.ema import Ema
from lib_lora_train.training.grad_scaling import GradScaler
from lib_lora_train.training.loop import Training, stop_text_encoders
from lib_lora_train.training.loss import loss_rule
from lib_lora_train.training.master_weights import MasterWeights
from lib_lora_train.training.optimizers import group_rates
from lib_lora_train.training.parameter_groups import stepper_for
from lib_lora_train.training.text_conditions import text_conditions
from lib_lora_train.training.training_state import TrainState, require_same_run


def start_training(
    model: DiffusionModel,
    adapter: Adapter,
    *,
    plan: Plan,
    latents: LatentStore,
    config: TrainConfig,
    state: TrainState | None = None,
    text_cache: Path | None = None,
) -> Training:
    """A run before its first step, or where `state` left it; the adapter is in place on the model.

    Encoded captions are kept in `text_cache`, if that is given and no adapter changes what the text encoders say.

    ConfigError if the optimiser cannot be made of the settings, a loss weight is not for models of this kind, or
    the state belongs to another run.
    """
    if state:
        require_same_run(state, config, plan)
        _put(adapter, state)
    training = _fresh_training(model, adapter, plan=plan, latents=latents, config=config, text_cache=text_cache)
    if state:
        _take_up(training, state)
    if training.text_is_over:
        stop_text_encoders(training)
    return training


def _fresh_training(
    model: DiffusionModel,
    adapter: Adapter,
    *,
    plan: Plan,
    latents: LatentStore,
    config: TrainConfig,
    text_cache: Path | None,
) -> Training:
    """The run before its first step, with the adapter's numbers as they are."""
    rates = group_rates(config, list(adapter.groups))
    working = MasterWeights(adapter.groups)
    in_fp16 = torch.float16 in (model.dtype, adapter.spec.dtype)
    training = Training(
        model=model,
        adapter=adapter,
        plan=plan,
        latents=latents,
        config=config,
        loss_rule=loss_rule(config, model.schedule.prediction_type),
        working=working,
        stepper=stepper_for(adapter, working, rates, config=config),
        conditions=text_conditions(
            config,
            trained=any(name != "unet" and rates[name] > 0 for name in adapter.groups),
            folder=text_cache if list(adapter.groups) == ["unet"] else None,
        ),
        scale=GradScaler(model.device) if in_fp16 else None,
        average=None,
        norm_limit=adapter.norm_limit(config.scale_weight_norms) if config.scale_weight_norms else None,
    )
    if config.ema_decay:
        training.average = Ema(training.parameters, config.ema_decay)
    return training


def _take_up(training: Training, state: TrainState) -> None:
    """Put counters, optimiser, loss scale and average where the state left them; its parameters are in place."""
    training.step = state.step
    training.epoch_loss, training.epoch_count = state.epoch_losses
    training.stepper.load_state(state.optimizer)
    if training.scale and state.loss_scale:
        training.scale.load_state(state.loss_scale)
    if training.average:
        training.average.load_state(state.average)


def _put(adapter: Adapter, state: TrainState) -> None:
    with torch.no_grad():
        for name, group in adapter.groups.items():
            for parameter, saved in zip(group, state.parameters[name], strict=True):
                parameter.copy_(saved)
