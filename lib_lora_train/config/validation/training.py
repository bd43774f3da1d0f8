"""Validation of learning-rate schedule, noise, timesteps, loss and memory settings."""

from __future__ import annotations

from collections.abc import Iterator

from lib_lora_train.config.problems import error_at, hint_at, unused, warning_at
from lib_lora_train.config.sample_prompts import mentions_trigger
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.prediction import prediction_problems
from lib_lora_train.core.errors import Problem

_HIGH_NOISE_OFFSET = 0.15
_HIGH_INPUT_PERTURBATION = 0.2
_HIGH_MULTIRES_DISCOUNT = 0.8
_FEW_TIMESTEPS = 100
_SMALL_RANK = 32  # with SDXL, 16 bits save half a GiB at this rank
_USED_BY = {
    "lr_decay": ("warmup_stable_decay",),
    "lr_cycles": ("cosine_with_restarts",),
    "lr_power": ("polynomial",),
    "lr_timescale": ("inverse_sqrt",),
    "lr_min_ratio": ("cosine_with_min_lr", "polynomial", "warmup_stable_decay"),
}


def validate_training(config: TrainConfig) -> Iterator[Problem]:
    """All problems of schedule, noise, timesteps, loss and memory settings."""
    yield from _schedule(config)
    yield from _schedule_values(config)
    yield from _offset(config)
    yield from _other_noise(config)
    yield from _timesteps(config)
    yield from _loss(config)
    if config.prediction_type != "auto":
        yield from prediction_problems(config, config.prediction_type)
    yield from _kind_of_model(config)
    yield from _weights(config)
    yield from _preservation(config)
    yield from _memory(config)


# --- learning-rate schedule ---------------------------------------------------------------------


def _schedule(config: TrainConfig) -> Iterator[Problem]:
    """Schedules that turn into another one with these settings, or that differ from sd-scripts."""
    kind = config.lr_schedule
    if kind == "constant" and config.warmup:
        text = "also applies to constant; sd-scripts ignores warm-up there. Set it to 0 for the same result."
        yield hint_at("warmup", text)
    if kind == "constant_with_warmup" and not config.warmup:
        yield hint_at(
            "lr_schedule", "constant_with_warmup without warmup is the same as constant. A warmup of 0.05 is usual."
        )
    if kind == "cosine_with_restarts" and config.lr_cycles == 1:
        yield hint_at("lr_schedule", "cosine_with_restarts with lr_cycles 1 never restarts; it equals cosine.")
    if kind == "inverse_sqrt" and not config.warmup and config.lr_timescale is None:
        text = "is empty and there is no warm-up, so it is 10,000: in shorter runs the rate hardly changes."
        yield hint_at("lr_timescale", text)
    for name, kinds in _USED_BY.items():
        if kind not in kinds:
            yield from unused(config, [name], f"with lr_schedule {kind}, only with {' and '.join(kinds)}")


def _schedule_values(config: TrainConfig) -> Iterator[Problem]:
    kind = config.lr_schedule
    if kind == "cosine_with_min_lr" and not config.lr_min_ratio:
        yield warning_at("lr_min_ratio", "is 0: the learning rate falls to 0, as with cosine. 0.1 is usual.")
    if kind in _USED_BY["lr_min_ratio"] and config.lr_min_ratio == 1:
        yield warning_at("lr_min_ratio", "is 1: the learning rate never falls. 0.1 is usual.")
    if kind != "warmup_stable_decay":
        return
    if not config.lr_decay:
        text = "is 0: the learning rate never falls, so the LoRA is left noisy. 0.1 to 0.2 is usual."
        yield warning_at("lr_decay", text)
    if config.warmup < 1 and config.lr_decay < 1 and config.warmup + config.lr_decay > 1:
        text = (
            f"{config.lr_decay:g} and warmup {config.warmup:g} exceed the run, so the decay is shortened, and no step "
            "has the full learning rate. 0.1 to 0.2 is usual."
        )
        yield warning_at("lr_decay", text)


# --- noise and timesteps ------------------------------------------------------------------------


def _offset(config: TrainConfig) -> Iterator[Problem]:
    offset = config.noise_offset
    strength = offset / 2 if config.noise_offset_random_strength else offset  # on average
    if strength > _HIGH_NOISE_OFFSET:
        yield warning_at("noise_offset", f"{offset:g} is high: colours and brightness drift. 0.03 to 0.1 is usual.")
    if not offset:
        yield from unused(config, ["noise_offset_random_strength"], "while noise_offset is 0")
    if config.adaptive_noise_scale < 0 and not offset:
        text = "is negative and noise_offset is 0, so there is nothing to reduce and it has no effect."
        yield warning_at("adaptive_noise_scale", text)
    elif config.adaptive_noise_scale > _HIGH_NOISE_OFFSET:
        text = "is high: latents have means up to 1, and colours drift. Up to 0.1 is usual."
        yield warning_at("adaptive_noise_scale", f"{config.adaptive_noise_scale:g} {text}")


def _other_noise(config: TrainConfig) -> Iterator[Problem]:
    if not config.multires_noise_iterations:
        yield from unused(config, ["multires_noise_discount"], "while multires_noise_iterations is 0")
    else:
        if config.noise_offset or config.adaptive_noise_scale:
            text = "and a noise offset both shift the brightness of large areas; together, colours drift. Use only one."
            yield warning_at("multires_noise_iterations", text)
        if config.multires_noise_discount > _HIGH_MULTIRES_DISCOUNT:
            text = f"{config.multires_noise_discount:g} turns the noise into large blotches. 0.1 to 0.3 is usual."
            yield warning_at("multires_noise_discount", text)
    if not config.ip_noise_gamma:
        yield from unused(config, ["ip_noise_gamma_random_strength"], "while ip_noise_gamma is 0")
    elif config.ip_noise_gamma > _HIGH_INPUT_PERTURBATION:
        text = f"{config.ip_noise_gamma:g} is high: images lose contrast and detail. 0.05 to 0.15 is usual."
        yield warning_at("ip_noise_gamma", text)


def _timesteps(config: TrainConfig) -> Iterator[Problem]:
    first, end = config.min_timestep, config.max_timestep
    if first >= end:
        yield error_at("min_timestep", f"{first} is not below max_timestep {end}, so there is no timestep to train on.")
    elif end - first < _FEW_TIMESTEPS:
        text = f"{first} to {end} is a narrow range, but generating an image uses all 1000 timesteps. Widen it."
        yield warning_at("min_timestep", text)
    if config.timestep_sampling != "sigmoid":
        why = f"while timestep_sampling is {config.timestep_sampling}"
        yield from unused(config, ("sigmoid_scale", "sigmoid_mean"), why)


# --- loss ---------------------------------------------------------------------------------------


def _loss(config: TrainConfig) -> Iterator[Problem]:
    if config.loss_type in ("l2", "l1"):
        names = ("huber_schedule", "huber_c", "huber_scale")
        yield from unused(config, names, f"while loss_type is {config.loss_type}")
    elif config.huber_schedule == "snr":
        yield from unused(config, ["huber_scale"], "with huber_schedule snr, only with exponential and constant")
    if 0 < config.min_snr_gamma < 1:
        yield warning_at("min_snr_gamma", f"{config.min_snr_gamma:g} gives most timesteps little weight. 5 is usual.")


def _kind_of_model(config: TrainConfig) -> Iterator[Problem]:
    if config.zero_terminal_snr == "on" and config.prediction_type == "epsilon":
        text = (
            "with prediction_type epsilon: at pure noise, predicting the noise teaches nothing. It is for v-prediction."
        )
        yield warning_at("zero_terminal_snr", text)


def _weights(config: TrainConfig) -> Iterator[Problem]:
    """Each loss weighting is designed to be used alone; products of two are not meaningful."""
    v_to_noise = config.scale_v_pred_loss_like_noise_pred
    if config.min_snr_gamma and config.debiased_estimation:
        text = (
            "and min_snr_gamma both lower the weight of nearly noise-free timesteps; together, hardly any detail is "
            "learnt. Use only one."
        )
        yield warning_at("debiased_estimation", text)
    if v_to_noise and config.v_pred_like_loss:
        text = "is for epsilon checkpoints, scale_v_pred_loss_like_noise_pred for v-prediction checkpoints."
        yield error_at("v_pred_like_loss", f"{text} Use the one that fits your checkpoint.")
    if v_to_noise and (config.min_snr_gamma or config.debiased_estimation):
        other = "min_snr_gamma" if config.min_snr_gamma else "debiased_estimation"
        text = f"is already part of {other} for v-prediction; with both, the noisiest timesteps hardly count. Use one."
        yield warning_at("scale_v_pred_loss_like_noise_pred", text)
    if config.v_pred_like_loss and config.min_snr_gamma:
        text = "gives noisy timesteps more weight, and min_snr_gamma gives the others less: both do the same. "
        yield hint_at("v_pred_like_loss", f"{text}One of the two is usual.")


def _preservation(config: TrainConfig) -> Iterator[Problem]:
    """Prompts to keep that would keep the concept itself from being learnt, and settings without effect."""
    kind, prompts = config.prior_preservation, config.prior_preservation_prompts
    if kind == "off":
        yield from unused(config, ["prior_preservation_weight"], "while prior_preservation is off")
    elif not config.prior_preservation_weight:
        yield hint_at("prior_preservation_weight", f"is 0, so prior_preservation {kind} has no effect. 1 is usual.")
    if kind != "prompts":
        yield from unused(config, ["prior_preservation_prompts"], "while prior_preservation is not prompts")
    elif not prompts:
        text = "is empty, but prior_preservation is prompts. List what to keep, such as the class, one prompt per line."
        yield error_at("prior_preservation_prompts", text)
    else:
        for prompt in prompts:
            if mentions_trigger(prompt, config.triggers):
                text = (
                    f"contains a trigger ({prompt}): what the LoRA learns there is unlearnt again. Remove the trigger."
                )
                yield warning_at("prior_preservation_prompts", text)
    own = [concept for concept in config.concepts if not concept.is_regularisation]
    if kind == "class" and not all(concept.trigger.strip() for concept in own):
        text = (
            "class replaces the trigger in the captions, but not every folder has one, so the same captions would be "
            "both learnt and kept. Set the triggers, or use empty or prompts."
        )
        yield error_at("prior_preservation", text)
    elif kind == "class" and not all(concept.class_word.strip() for concept in own):
        text = "class keeps captions without the trigger; with a class_word in every folder, it also keeps the class."
        yield hint_at("prior_preservation", text)
    if not any(concept.use_masks for concept in config.concepts):
        yield from unused(config, ["masked_prior_preservation_weight"], "while no folder has use_masks on")


# --- memory ---------------------------------------------------------------------------------------


def _memory(config: TrainConfig) -> Iterator[Problem]:
    is_small = config.method == config.family == "lora" and config.rank <= _SMALL_RANK
    if config.lora_precision != "fp32" and is_small:
        text = (
            f"{config.lora_precision} saves little memory at rank {config.rank} and adds rounding noise. fp32 is exact."
        )
        yield hint_at("lora_precision", text)
    if config.fp8_base and not config.gradient_checkpointing:
        text = (
            "saves little without gradient_checkpointing: every layer keeps a larger copy until the backward pass. "
            "Switch that on too."
        )
        yield hint_at("fp8_base", text)
