"""Judgement of what is trained and by which optimiser, at which learning rates; `validate` collects all."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.optimizer_catalog import CUSTOM, KINDS, LENGTHS, OptimizerKind, takes_own_schedule
from lib_lora_train.config.problems import error_at, hint_at, unused, warning_at
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.network import needs_its_own_rate
from lib_lora_train.core.errors import ConfigError, Problem

_LARGE_BATCH = 4  # images per step, from which the guides raise the learning rate
_LEAST_SD_PX = 256  # below it only models much smaller than Stable Diffusion are trained, at higher rates
_LEVEL = ("constant", "constant_with_warmup")


def validate_optimizer(config: TrainConfig) -> Iterator[Problem]:
    """Every finding about the parts that are trained, their learning rates and the optimiser."""
    yield from _parts(config)
    yield from _text_encoders(config)
    arguments: Mapping[str, object] = {}
    try:
        arguments = parse_optimizer_args(config.optimizer_args)
    except ConfigError as error:
        yield from error.problems
    yield from _custom(config)
    kind = KINDS[config.optimizer]
    for name, value in arguments.items():
        yield from _argument(name, value, kind, config.optimizer)
    if kind.finds_rate:
        yield from _finds_rate(config, arguments)
    else:
        yield from _given_rates(config, kind)
    yield from _adafactor(config, arguments)
    yield from _averages(config, kind)


# --- parts and rates ------------------------------------------------------------------------------


def learning_rates(config: TrainConfig) -> dict[str, float]:
    """The learning rates in use, by the parameter that sets each; the UNet's first."""
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
        yield error_at("train_unet", "is off and train_text_encoder too: there is nothing to train. Switch one on.")
    rates = {name: rate for name, rate in learning_rates(config).items() if rate == 0}
    if rates and len(rates) == len(learning_rates(config)):
        yield error_at(next(iter(rates)), "is 0: nothing is learnt.")
    elif rates and "text_encoder_2_lr" not in rates:
        name = next(iter(rates))
        switch = "train_unet" if name == "unet_lr" else "train_text_encoder"
        yield warning_at(name, f"is 0: that part stays as it is and still costs time. Switch {switch} off instead.")
    if config.unet_lr is not None and not config.train_unet:
        yield hint_at("unet_lr", "has no effect while train_unet is off.")


def _text_encoders(config: TrainConfig) -> Iterator[Problem]:
    if not config.train_text_encoder:
        names = ("text_encoder_lr", "text_encoder_2_lr", "loraplus_text_encoder_ratio", "stop_text_encoder")
        yield from unused(config, names, "while train_text_encoder is off")
    elif config.stop_text_encoder and not config.train_unet:
        yield warning_at("stop_text_encoder", "ends all learning, since train_unet is off. Set it to 0.")
    elif config.max_steps and config.stop_text_encoder >= max(1, config.max_steps):
        text = f"{config.stop_text_encoder:g} steps come after max_steps {config.max_steps}: they never stop."
        yield hint_at("stop_text_encoder", text)


# --- the optimiser and its arguments --------------------------------------------------------------


def _custom(config: TrainConfig) -> Iterator[Problem]:
    if config.optimizer == CUSTOM and not config.custom_optimizer:
        text = "is empty. Name the class as package.Class, for example torch.optim.RAdam, or choose another optimizer."
        yield error_at("custom_optimizer", text)
    elif config.optimizer != CUSTOM and config.custom_optimizer:
        yield hint_at("custom_optimizer", f"has no effect while optimizer is {config.optimizer}. Choose {CUSTOM}.")


def _argument(name: str, value: object, kind: OptimizerKind, optimizer: str) -> Iterator[Problem]:
    """Whether the optimiser takes such an argument; of a custom one only its class knows."""
    if name == "lr":
        yield error_at("optimizer_args", "lr is set by learning_rate, unet_lr and text_encoder_lr.")
        return
    if not kind.arguments:
        return
    if name not in kind.arguments:
        near = difflib.get_close_matches(name, kind.arguments, 1)
        hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(kind.arguments)}."
        yield error_at("optimizer_args", f"{optimizer} has no argument {name}. {hint}")
        return
    wanted = LENGTHS.get(optimizer, {}).get(name, 2 if name == "betas" else 1)
    given = value if isinstance(value, tuple) else (value,)
    if name == "betas":
        is_good = len(given) == wanted and all(isinstance(b, (int, float)) and 0 <= b < 1 for b in given)
        if not is_good:
            count, example = {2: ("two", "0.9,0.99"), 3: ("three", "0.9,0.999,0.9999")}[wanted]
            yield error_at("optimizer_args", f"betas takes {count} numbers from 0 to below 1, such as betas={example}.")
    elif len(given) != wanted:
        values = "one value" if wanted == 1 else f"{wanted} values"
        yield error_at("optimizer_args", f"{name} takes {values}, not {len(given)}.")


def _finds_rate(config: TrainConfig, arguments: Mapping[str, object]) -> Iterator[Problem]:
    """Prodigy and D-Adaptation: their estimate is for all parts together, and only ever grows."""
    rates, name = learning_rates(config), config.optimizer
    for where, rate in rates.items():
        if rate not in (0, 1):
            text = f"{rate:g} with {name}: it finds the rate itself and multiplies it by this. Set it to 1."
            yield warning_at(where, text)
    if len({rate for rate in rates.values() if rate}) > 1:
        text = f"differs from the UNet's: {name} estimates one rate for all, and multiplies it by this for its group."
        yield hint_at("text_encoder_lr", text)
    if config.warmup and name == "Prodigy" and not arguments.get("safeguard_warmup"):
        text = (
            "with Prodigy without safeguard_warmup: the small rates of the warm-up spoil its estimate. Add "
            "safeguard_warmup=True to optimizer_args, or set warmup to 0."
        )
        yield warning_at("warmup", text)
    elif config.warmup and name != "Prodigy":
        text = f"with {name}: its estimate begins tiny and grows by itself, which is a warm-up already. 0 is usual."
        yield hint_at("warmup", text)
    if config.lr_schedule == "cosine_with_restarts":
        text = f"cosine_with_restarts with {name}: its estimate never falls, so each restart is at the largest steps."
        yield warning_at("lr_schedule", f"{text} cosine or constant are usual.")
    for where in ("loraplus_unet_ratio", "loraplus_text_encoder_ratio"):
        if getattr(config, where) not in (0, 1):
            text = f"with {name}: its estimate is for all matrices alike, and LoRA+ pulls them apart. Set it to 0."
            yield warning_at(where, text)


def _given_rates(config: TrainConfig, kind: OptimizerKind) -> Iterator[Problem]:
    if takes_own_schedule(config.optimizer, config.lr_schedule) or config.optimizer == CUSTOM:
        return
    if needs_its_own_rate(config) or config.resolution < _LEAST_SD_PX:
        kind = replace(kind, high_rate=math.inf)
    scale = min(1.0, config.effective_alpha / config.rank)
    ratio = max(1.0, config.loraplus_unet_ratio)
    for name, rate in learning_rates(config).items():
        if rate * scale > kind.high_rate:
            text = f"{rate:g} is high for {config.optimizer}: above {kind.high_rate:g} images burn. "
            start = f"{kind.usual_rate:g} is the guides' start."
            yield warning_at(name, text + start + (" 1 is for Prodigy." if rate == 1 else ""))
        elif rate * scale * ratio > 4 * kind.high_rate and name != "text_encoder_lr":
            text = f"{ratio:g} times {rate:g} is high for the up matrices. Lower the learning rate or the ratio."
            yield warning_at("loraplus_unet_ratio", text)
    unet, text_encoder = (config.learning_rate if r is None else r for r in (config.unet_lr, config.text_encoder_lr))
    if config.train_unet and config.train_text_encoder and 0 < unet < text_encoder:
        text = f"{text_encoder:g} is more than the UNet's {unet:g}: the text encoder overtrains first."
        yield warning_at("text_encoder_lr", f"{text} Half to a tenth is usual.")
    yield from _linear_rule(config, kind)


def _linear_rule(config: TrainConfig, kind: OptimizerKind) -> Iterator[Problem]:
    """Goyal et al. 2017: with n times the images per step the rate may be n times as high. Offered, not applied."""
    images = config.batch_size * config.gradient_accumulation
    rate = config.learning_rate
    if images >= _LARGE_BATCH and 0 < rate <= kind.usual_rate:
        text = f"{rate:g} suits small batches; with {images} images per step the guides go up to {rate * images:g}"
        yield hint_at("learning_rate", f"{text} (in proportion). Nothing is changed by itself.")


def _adafactor(config: TrainConfig, arguments: Mapping[str, object]) -> Iterator[Problem]:
    """Its own steps are a schedule here, so that one place says who chooses the rate."""
    if config.lr_schedule == "adafactor" and config.optimizer != "Adafactor":
        yield error_at("lr_schedule", f"adafactor is Adafactor's own, and the optimizer is {config.optimizer}.")
    if config.optimizer != "Adafactor":
        return
    own = config.lr_schedule == "adafactor"
    if arguments.get("relative_step", own) != own:
        text = "relative_step=True means lr_schedule adafactor, and False any other one. Make the two agree."
        yield error_at("optimizer_args", text)
    if arguments.get("warmup_init") and not own:
        yield error_at("optimizer_args", "warmup_init=True is for lr_schedule adafactor. Use warmup instead.")
    if own:
        yield hint_at("learning_rate", "has no effect: with lr_schedule adafactor Adafactor chooses its own steps.")
        if config.warmup:
            yield hint_at("warmup", "has no effect with lr_schedule adafactor; warmup_init=True in optimizer_args has.")
    elif arguments.get("scale_parameter"):
        text = (
            "scale_parameter=True multiplies the learning rate by each matrix's size, which is 0 at first for half of "
        )
        yield warning_at("optimizer_args", f"{text}a LoRA. scale_parameter=False is usual with a rate of one's own.")


def _averages(config: TrainConfig, kind: OptimizerKind) -> Iterator[Problem]:
    if kind.schedule_free and config.lr_schedule not in _LEVEL:
        text = f"{config.lr_schedule} with {config.optimizer}: it averages instead of a falling rate; both together end"
        yield warning_at("lr_schedule", f"{text} learning too soon. Choose constant.")
    if kind.schedule_free and config.ema_decay:
        text = f"with {config.optimizer}: it keeps a mean of its own, which is what is saved. Set it to 0."
        yield warning_at("ema_decay", text)
    if config.ema_decay == 1:
        yield error_at("ema_decay", "is 1: the mean would stay at the untrained beginning for ever. 0.99 is usual.")
    elif config.ema_decay and config.max_steps and config.max_steps * (1 - config.ema_decay) < 1:
        text = f"{config.ema_decay:g} looks back over {1 / (1 - config.ema_decay):.0f} steps, and the run has"
        yield warning_at("ema_decay", f"{text} {config.max_steps}: the mean stays behind. 0.99 suits short runs.")
