"""Validation of the trained parts, their learning rates and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from lib_lora_train.config.family_catalog import FAMILY_CATALOG
from lib_lora_train.config.method_catalog import nearest_lora
from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.optimizer_catalog import (
    ARGUMENT_LENGTHS,
    CUSTOM,
    OPTIMIZER_CATALOG,
    OptimizerInfo,
    uses_relative_step,
)
from lib_lora_train.config.problems import error_at, hint_at, unused, warning_at
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.method import USUAL_EMBEDDING_RATE
from lib_lora_train.config.validation.network import has_family_specific_lr
from lib_lora_train.core.errors import ConfigError, Problem
from lib_lora_train.core.image_sizes import SMALLEST_SD_PX
from lib_lora_train.core.wording import count, did_you_mean

_LARGE_BATCH = 4  # images per step; from here on the guides raise the learning rate
_CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")


def validate_optimizer(config: TrainConfig) -> Iterator[Problem]:
    """All problems of the trained parts, their learning rates and the optimiser."""
    if config.method == "lora":
        yield from _parts(config)
        yield from _text_encoders(config)
    arguments: Mapping[str, object] = {}
    try:
        arguments = parse_optimizer_args(config.optimizer_args)
    except ConfigError as error:
        yield from error.problems
    yield from _custom(config)
    kind = OPTIMIZER_CATALOG[config.optimizer]
    for name, value in arguments.items():
        yield from _argument(name, value, kind, config.optimizer)
    if kind.estimates_lr:
        yield from _estimated_rates(config, arguments)
    else:
        yield from _fixed_rates(config, kind)
    yield from _adafactor(config, arguments)
    yield from _averages(config, kind)


# --- parts and rates ------------------------------------------------------------------------------


def learning_rates(config: TrainConfig) -> dict[str, float]:
    """The learning rates in use, by the setting that determines each; the UNet's first."""
    config = nearest_lora(config)
    rates: dict[str, float] = {}
    for is_trained, name in ((config.train_unet, "unet_lr"), (config.train_text_encoder, "text_encoder_lr")):
        own = getattr(config, name)
        if is_trained:
            rates["learning_rate" if own is None else name] = config.learning_rate if own is None else own
    if config.train_text_encoder and config.text_encoder_2_lr is not None:
        rates["text_encoder_2_lr"] = config.text_encoder_2_lr
    return rates


def _parts(config: TrainConfig) -> Iterator[Problem]:
    if not config.train_unet and not config.train_text_encoder:
        yield error_at(
            "train_unet", "and train_text_encoder are both off, so there is nothing to train. Switch one on."
        )
    rates = {name: rate for name, rate in learning_rates(config).items() if rate == 0}
    if rates and len(rates) == len(learning_rates(config)):
        yield error_at(next(iter(rates)), "is 0, so nothing is learnt.")
    elif rates and "text_encoder_2_lr" not in rates:
        name = next(iter(rates))
        switch = "train_unet" if name == "unet_lr" else "train_text_encoder"
        yield warning_at(name, f"is 0: that part is not trained but still costs time. Switch off {switch} instead.")
    if config.unet_lr is not None and not config.train_unet:
        yield hint_at("unet_lr", "has no effect while train_unet is off.")


def _text_encoders(config: TrainConfig) -> Iterator[Problem]:
    if not config.train_text_encoder:
        names = ("text_encoder_lr", "text_encoder_2_lr", "loraplus_text_encoder_ratio", "stop_text_encoder")
        yield from unused(config, names, "while train_text_encoder is off")
    elif config.stop_text_encoder and not config.train_unet:
        yield warning_at("stop_text_encoder", "stops all training, as train_unet is off. Set it to 0.")
    elif config.max_steps and config.stop_text_encoder >= max(1, config.max_steps):
        text = (
            f"{count(config.stop_text_encoder, 'step')} is not before max_steps {config.max_steps}, so it has no "
            "effect."
        )
        yield hint_at("stop_text_encoder", text)


def usual_learning_rates(config: TrainConfig, name: str) -> Iterator[float]:
    """The values that guides give for a learning rate with this optimiser and family, for the setting `name`.

    1 is one of them only for an optimiser that finds the rate itself.
    """
    kind, rates = OPTIMIZER_CATALOG[config.optimizer], FAMILY_CATALOG[config.family].rates
    if config.method != "lora" and not kind.estimates_lr:
        yield USUAL_EMBEDDING_RATE
        return
    is_text = name.startswith("text_encoder")
    if kind.estimates_lr:
        yield 1.0
    elif rates is not None:
        yield rates.usual_text if is_text else rates.usual
    elif config.optimizer != CUSTOM:
        if is_text:
            yield config.effective_unet_lr / 2
        yield kind.usual_lr / 2 if is_text else kind.usual_lr


# --- the optimiser and its arguments --------------------------------------------------------------


def _custom(config: TrainConfig) -> Iterator[Problem]:
    if config.optimizer == CUSTOM and not config.custom_optimizer:
        text = "is empty. Enter a class such as torch.optim.RAdam, or choose another optimizer."
        yield error_at("custom_optimizer", text)
    elif config.optimizer != CUSTOM and config.custom_optimizer:
        yield hint_at("custom_optimizer", f"has no effect while optimizer is {config.optimizer}. Choose {CUSTOM}.")


def _argument(name: str, value: object, kind: OptimizerInfo, optimizer: str) -> Iterator[Problem]:
    """Checks one optimiser argument. Those of custom optimisers are checked by their class."""
    if name == "lr":
        yield error_at("optimizer_args", "lr is not allowed here. Use learning_rate, unet_lr and text_encoder_lr.")
        return
    if not kind.arguments:
        return
    if name not in kind.arguments:
        hint = did_you_mean(name, kind.arguments) or f" Its arguments are {', '.join(kind.arguments)}."
        yield error_at("optimizer_args", f"{optimizer} has no argument {name}.{hint}")
        return
    wanted = ARGUMENT_LENGTHS.get(optimizer, {}).get(name, 2 if name == "betas" else 1)
    given = value if isinstance(value, tuple) else (value,)
    if name == "betas":
        is_good = len(given) == wanted and all(isinstance(b, (int, float)) and 0 <= b < 1 for b in given)
        if not is_good:
            example = {2: "0.9,0.99", 3: "0.9,0.999,0.9999"}[wanted]
            yield error_at(
                "optimizer_args", f"betas needs {count(wanted, 'number')} from 0 to below 1, such as betas={example}."
            )
    elif len(given) != wanted:
        yield error_at("optimizer_args", f"{name} needs {count(wanted, 'value')}, not {len(given)}.")


def _estimated_rates(config: TrainConfig, arguments: Mapping[str, object]) -> Iterator[Problem]:
    """Prodigy and D-Adaptation: one estimate for all parts, which never decreases."""
    rates, name = learning_rates(config), config.optimizer
    for where, rate in rates.items():
        if rate not in (0, 1):
            text = (
                f"{rate:g} with {name}: it finds the learning rate itself and multiplies it by this value. Set it to 1."
            )
            yield warning_at(where, text)
    if len({rate for rate in rates.values() if rate}) > 1:
        text = f"differs from the UNet's: {name} estimates one rate and scales it by this value for the text encoder."
        yield hint_at("text_encoder_lr", text)
    if config.warmup and name == "Prodigy" and not arguments.get("safeguard_warmup"):
        text = (
            "with Prodigy needs safeguard_warmup, or the small learning rates of the warm-up spoil its estimate. Add "
            "safeguard_warmup=True to optimizer_args, or set warmup to 0."
        )
        yield warning_at("warmup", text)
    elif config.warmup and name != "Prodigy":
        text = f"with {name}: its estimate starts tiny and grows, which is already a warm-up. 0 is usual."
        yield hint_at("warmup", text)
    if config.lr_schedule == "cosine_with_restarts":
        text = f"cosine_with_restarts takes the largest steps after each restart, as {name}'s estimate never decreases."
        yield warning_at("lr_schedule", f"{text} cosine or constant are usual.")
    for where in ("loraplus_unet_ratio", "loraplus_text_encoder_ratio"):
        if getattr(config, where) not in (0, 1):
            text = f"with {name}: it estimates one rate for all matrices, but LoRA+ needs different ones. Set it to 0."
            yield warning_at(where, text)


def _fixed_rates(config: TrainConfig, kind: OptimizerInfo) -> Iterator[Problem]:
    if uses_relative_step(config.optimizer, config.lr_schedule) or config.optimizer == CUSTOM:
        return
    if has_family_specific_lr(config) or config.resolution < SMALLEST_SD_PX:
        kind = replace(kind, high_lr=math.inf)
    scale = min(1.0, config.effective_alpha / config.rank)
    ratio = max(1.0, config.loraplus_unet_ratio)
    for name, rate in learning_rates(config).items():
        if rate * scale > kind.high_lr:
            text = f"{rate:g} is high for {config.optimizer}: above {kind.high_lr:g} images look overcooked. "
            start = f"Guides start with {kind.usual_lr:g}."
            yield warning_at(name, text + start + (" 1 is for Prodigy." if rate == 1 else ""))
        elif rate * scale * ratio > 4 * kind.high_lr and name != "text_encoder_lr":
            text = f"{ratio:g} × {rate:g} is high for the up matrices. Lower the learning rate or the ratio."
            yield warning_at("loraplus_unet_ratio", text)
    unet, text_encoder = config.effective_unet_lr, config.effective_text_encoder_lr
    if config.method == "lora" and config.train_unet and config.train_text_encoder and 0 < unet < text_encoder:
        text = f"{text_encoder:g} is higher than the UNet's {unet:g}: the text encoder will overtrain first."
        yield warning_at("text_encoder_lr", f"{text} Half to a tenth is usual.")
    yield from _linear_rule(config, kind)


def _linear_rule(config: TrainConfig, kind: OptimizerInfo) -> Iterator[Problem]:
    """Goyal et al. 2017: with n times the images per step, the learning rate can be n times as high."""
    images = config.batch_size * config.gradient_accumulation
    rate = config.learning_rate
    if config.method == "lora" and images >= _LARGE_BATCH and 0 < rate <= kind.usual_lr:
        text = (
            f"{rate:g} suits small batches; with {count(images, 'image')} per step the guides go up to "
            f"{rate * images:g}"
        )
        yield hint_at("learning_rate", f"{text} (in proportion). It is not changed automatically.")


def _adafactor(config: TrainConfig, arguments: Mapping[str, object]) -> Iterator[Problem]:
    """Adafactor's relative steps are selected with lr_schedule, so that only one setting decides."""
    if config.lr_schedule == "adafactor" and config.optimizer != "Adafactor":
        yield error_at("lr_schedule", f"adafactor works only with optimizer Adafactor, not with {config.optimizer}.")
    if config.optimizer != "Adafactor":
        return
    own = config.lr_schedule == "adafactor"
    if arguments.get("relative_step", own) != own:
        text = "relative_step=True needs lr_schedule adafactor, and False any other schedule. Change one of the two."
        yield error_at("optimizer_args", text)
    if arguments.get("warmup_init") and not own:
        yield error_at("optimizer_args", "warmup_init=True works only with lr_schedule adafactor. Use warmup instead.")
    if own:
        yield hint_at(
            "learning_rate", "has no effect with lr_schedule adafactor, which chooses the learning rate itself."
        )
        if config.warmup:
            yield hint_at("warmup", "has no effect with lr_schedule adafactor. Use warmup_init=True in optimizer_args.")
    elif arguments.get("scale_parameter"):
        text = (
            "scale_parameter=True multiplies the learning rate by the size of the weights, but half of a LoRA starts "
            "at 0. scale_parameter=False is usual with a fixed learning rate."
        )
        yield warning_at("optimizer_args", text)


def _averages(config: TrainConfig, kind: OptimizerInfo) -> Iterator[Problem]:
    if kind.schedule_free and config.lr_schedule not in _CONSTANT_SCHEDULES:
        text = (
            f"{config.lr_schedule} lowers the learning rate, and {config.optimizer} averages the weights instead. With "
            "both, learning stops too soon. Use constant."
        )
        yield warning_at("lr_schedule", text)
    if kind.schedule_free and config.ema_decay:
        text = f"with {config.optimizer}: it already averages the weights that are saved. Set it to 0."
        yield warning_at("ema_decay", text)
    if config.ema_decay == 1:
        yield error_at("ema_decay", "is 1, so the average would never leave the untrained start. 0.99 is usual.")
    elif config.ema_decay and config.max_steps and config.max_steps * (1 - config.ema_decay) < 1:
        text = (
            f"{config.ema_decay:g} averages over {count(round(1 / (1 - config.ema_decay)), 'step')}, but the run has "
            "only"
        )
        yield warning_at("ema_decay", f"{text} {config.max_steps}, so it lags behind. 0.99 suits short runs.")
