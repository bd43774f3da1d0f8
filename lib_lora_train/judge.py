"""Judgement of a config as a whole: what cannot work, what will disappoint, and why.

`read_config` has checked every value by itself. Here they are looked at together, without touching the disk.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator

from lib_lora_train.config import Concept, TrainConfig
from lib_lora_train.errors import ConfigError, Level, Problem
from lib_lora_train.judge_captions import judge_captions
from lib_lora_train.judge_network import judge_network, needs_its_own_rate
from lib_lora_train.judge_training import judge_training
from lib_lora_train.optimizer_args import parse_optimizer_args

_LATENT_STEP = 8  # px per latent cell in every Stable Diffusion
_UNET_STEP = 64  # px: the UNet of SD1 and SD2 halves the latent three times
_HIGH_LEARNING_RATE = 5e-4  # where the guides see pictures burn, at alpha = rank and batches of a few pictures
_MOST_NAME_BYTES = 200  # file systems allow 255; room for the epoch's number and an unfinished file's ending

OPTIMIZER_ARGUMENTS = {
    "AdamW": ("betas", "eps", "weight_decay", "amsgrad"),
    "Prodigy": (
        "betas",
        "beta3",
        "eps",
        "weight_decay",
        "decouple",
        "use_bias_correction",
        "safeguard_warmup",
        "d0",
        "d_coef",
        "growth_rate",
        "slice_p",
    ),
}
"""The arguments that `optimizer_args` may hold, by optimiser."""

_FORBIDDEN_IN_NAMES = '<>:"|?*'
_RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
_PROMPT_NUMBERS: dict[str, tuple[type, float, float]] = {
    "w": (int, 64, 4096),
    "h": (int, 64, 4096),
    "d": (int, 0, 2**63 - 1),
    "s": (int, 1, 1000),
    "l": (float, 1, 100),
}

PROMPT_OPTIONS = (*_PROMPT_NUMBERS, "n")
"""The options that may follow a sample prompt, without their hyphens."""


def judge(config: TrainConfig) -> tuple[Problem, ...]:
    """Every finding about the config: errors first, then warnings, then hints."""
    found = [problem for check in _CHECKS for problem in check(config)]
    order: list[Level] = ["error", "warning", "hint"]
    return tuple(sorted(found, key=lambda problem: order.index(problem.level)))


def require_usable(problems: Iterable[Problem]) -> None:
    """Raises ConfigError with all errors among `problems`, if there are any."""
    errors = [problem for problem in dict.fromkeys(problems) if problem.level == "error"]
    if errors:
        raise ConfigError(errors)


def _error(where: str, message: str) -> Problem:
    return Problem("error", where, message)


def _warning(where: str, message: str) -> Problem:
    return Problem("warning", where, message)


def _hint(where: str, message: str) -> Problem:
    return Problem("hint", where, message)


# --- data ---------------------------------------------------------------------------------------


def _concepts(config: TrainConfig) -> Iterator[Problem]:
    if not config.concepts:
        yield _error("concepts", "no folder with pictures is given. Name one to train on.")
    elif all(concept.is_regularisation for concept in config.concepts):
        yield _error("concepts", "all folders hold regularisation pictures; there is nothing to learn. Add a folder.")
    for number, concept in enumerate(config.concepts, start=1):
        yield from _concept(concept, f"concepts[{number}]")
    seen: dict[str, int] = {}
    for number, concept in enumerate(config.concepts, start=1):
        folder = concept.folder.rstrip("/\\")
        if folder and seen.setdefault(folder, number) != number:
            yield _warning(f"concepts[{number}].folder", f"is also the folder of concepts[{seen[folder]}].")


def _concept(concept: Concept, where: str) -> Iterator[Problem]:
    if not concept.folder:
        yield _error(f"{where}.folder", "is empty. Name the folder with the pictures.")
    if concept.is_regularisation and concept.trigger:
        yield _hint(f"{where}.trigger", "is not used: regularisation pictures never get the trigger.")


def _buckets(config: TrainConfig) -> Iterator[Problem]:
    step = config.bucket_step
    if step % _LATENT_STEP:
        yield _error(
            "bucket_step", f"{step} is not a multiple of {_LATENT_STEP}, the size of a latent cell. {_near(step, 8)}"
        )
    elif step % _UNET_STEP:
        yield _warning(
            "bucket_step",
            f"{step} is not a multiple of {_UNET_STEP}: SD1 and SD2 halve the latent three times and round odd sides "
            "on the way. 64 suits all models, 32 SDXL.",
        )
    if config.enable_buckets:
        yield from _bucket_limits(config)
        return
    if config.resolution % step:
        yield _error(
            "resolution",
            f"{config.resolution} is not a multiple of bucket_step {step}. {_near(config.resolution, step)}",
        )
    if config.bucket_no_upscale:
        yield _hint("bucket_no_upscale", "has no effect while enable_buckets is off.")


def _bucket_limits(config: TrainConfig) -> Iterator[Problem]:
    step, resolution = config.bucket_step, config.resolution
    if resolution < step:
        yield _error("resolution", f"{resolution} is smaller than one bucket_step, {step}.")
    elif resolution % step:
        side = resolution // step * step
        text = f"{resolution} is not a multiple of bucket_step {step}; the square bucket has {side} px."
        yield _warning("resolution", f"{text} {_near(resolution, step)}")
    if config.bucket_no_upscale:
        return  # kohya's rule: buckets then follow the pictures, not the limits
    for name in ("min_bucket", "max_bucket"):
        side = getattr(config, name)
        if side % step:
            yield _error(name, f"{side} is not a multiple of bucket_step {step}. {_near(side, step)}")
    if config.min_bucket > config.max_bucket:
        yield _error("min_bucket", f"{config.min_bucket} is larger than max_bucket {config.max_bucket}.")
    elif config.min_bucket > resolution:
        yield _error(
            "min_bucket", f"{config.min_bucket} is larger than the resolution {resolution}; {resolution // 2} is usual."
        )
    elif config.max_bucket < resolution:
        yield _error(
            "max_bucket", f"{config.max_bucket} is smaller than the resolution {resolution}; {resolution * 2} is usual."
        )


def _near(value: int, step: int) -> str:
    below = value // step * step
    return f"Nearest: {below} or {below + step}." if below else f"Nearest: {step}."


# --- training -----------------------------------------------------------------------------------


def _parts(config: TrainConfig) -> Iterator[Problem]:
    if not config.train_unet and not config.train_text_encoder:
        yield _error("train_unet", "is off and train_text_encoder too: there is nothing to train. Switch one on.")
    rates = {name: rate for name, rate in _learning_rates(config).items() if rate == 0}
    if rates and len(rates) == len(_learning_rates(config)):
        yield _error(next(iter(rates)), "is 0: nothing is learnt.")
    elif rates:
        name = next(iter(rates))
        switch = "train_unet" if name == "unet_lr" else "train_text_encoder"
        yield _warning(name, f"is 0: that part stays as it is and still costs time. Switch {switch} off instead.")
    if config.unet_lr is not None and not config.train_unet:
        yield _hint("unet_lr", "has no effect while train_unet is off.")
    if config.text_encoder_lr is not None and not config.train_text_encoder:
        yield _hint("text_encoder_lr", "has no effect while train_text_encoder is off.")


def _learning_rates(config: TrainConfig) -> dict[str, float]:
    """The learning rates in use, by the parameter that sets each; the UNet's first."""
    rates: dict[str, float] = {}
    for is_trained, name in ((config.train_unet, "unet_lr"), (config.train_text_encoder, "text_encoder_lr")):
        own = getattr(config, name)
        if is_trained:
            rates["learning_rate" if own is None else name] = config.learning_rate if own is None else own
    return rates


def _optimizer(config: TrainConfig) -> Iterator[Problem]:
    try:
        arguments = parse_optimizer_args(config.optimizer_args)
    except ConfigError as error:
        yield from error.problems
        arguments = {}
    known = OPTIMIZER_ARGUMENTS[config.optimizer]
    for name, value in arguments.items():
        yield from _argument(name, value, known, config.optimizer)
    if config.optimizer == "Prodigy":
        yield from _prodigy(config, bool(arguments.get("safeguard_warmup")))
    else:
        yield from _adamw(config)


def _argument(name: str, value: object, known: tuple[str, ...], optimizer: str) -> Iterator[Problem]:
    if name == "lr":
        yield _error("optimizer_args", "lr is set by learning_rate, unet_lr and text_encoder_lr.")
    elif name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"Did you mean {near[0]}?" if near else f"It takes {', '.join(known)}."
        yield _error("optimizer_args", f"{optimizer} has no argument {name}. {hint}")
    elif name == "betas":
        pair = value if isinstance(value, tuple) else ()
        if len(pair) != 2 or not all(isinstance(b, (int, float)) and 0 <= b < 1 for b in pair):
            yield _error("optimizer_args", "betas takes two numbers from 0 to below 1, such as betas=0.9,0.99.")
    elif isinstance(value, tuple):
        yield _error("optimizer_args", f"{name} takes one value, not {len(value)}.")


def _prodigy(config: TrainConfig, has_safeguard: bool) -> Iterator[Problem]:
    rates = _learning_rates(config)
    for name, rate in rates.items():
        if rate not in (0, 1):
            text = f"{rate:g} with Prodigy: it finds the rate itself and multiplies it by this. Set it to 1."
            yield _warning(name, text)
    if len({rate for rate in rates.values() if rate}) > 1:
        text = "differs from the UNet's: Prodigy estimates one rate for all, and multiplies it by this for its group."
        yield Problem("hint", "text_encoder_lr", text)
    if config.warmup and not has_safeguard:
        text = (
            "with Prodigy without safeguard_warmup: the small rates of the warm-up spoil its estimate. Add "
            "safeguard_warmup=True to optimizer_args, or set warmup to 0."
        )
        yield _warning("warmup", text)


def _adamw(config: TrainConfig) -> Iterator[Problem]:
    scale = min(1.0, config.effective_alpha / config.rank)
    for name, rate in _learning_rates(config).items():
        if rate * scale > _HIGH_LEARNING_RATE and not needs_its_own_rate(config):
            text = (
                f"{rate:g} is high for AdamW: above {_HIGH_LEARNING_RATE:g} pictures burn. 1e-4 is the guides' start."
            )
            yield _warning(name, text + (" 1 is for Prodigy." if rate == 1 else ""))
    unet, text_encoder = (config.learning_rate if r is None else r for r in (config.unet_lr, config.text_encoder_lr))
    if config.train_unet and config.train_text_encoder and 0 < unet < text_encoder:
        text = f"{text_encoder:g} is more than the UNet's {unet:g}: the text encoder overtrains first."
        yield _warning("text_encoder_lr", f"{text} Half to a tenth is usual.")


def _steps(config: TrainConfig) -> Iterator[Problem]:
    if config.max_steps and config.warmup >= max(1, config.max_steps):
        yield _warning(
            "warmup", f"{config.warmup:g} steps are not over when max_steps {config.max_steps} ends the run."
        )
    if config.save_every_n_epochs > config.epochs:
        yield _hint("save_every_n_epochs", f"is more than the {config.epochs} epochs: only the last one is written.")


# --- output and samples -------------------------------------------------------------------------


def _output(config: TrainConfig) -> Iterator[Problem]:
    reason = _unusable_name(config.output_name)
    if reason:
        yield _error("output_name", reason)


def _unusable_name(name: str) -> str:
    """Why this cannot be a file's name on every system and a LoRA's name in a prompt, "" when it can."""
    if not name:
        return "is empty. Give the LoRA a name."
    if re.search(r"[\\/]", name) or name in (".", ".."):
        return f"{name!r} has path parts. Give the name only; the folder is output_dir."
    forbidden = sorted({c for c in name if c in _FORBIDDEN_IN_NAMES or not c.isprintable()})
    if forbidden:
        shown = " ".join(c if c.isprintable() else repr(c) for c in forbidden)
        return f"{name!r} has characters that file names and <lora:name:1> cannot have: {shown}"
    if name.lower().endswith(".safetensors"):
        return f"{name!r} has an ending; it is added. Write {name[: -len('.safetensors')]!r}."
    if name[0] in ". " or name[-1] in ". ":
        return f"{name!r} begins or ends with a dot or blank, which hides the file or is lost on Windows."
    if name.split(".")[0].upper() in _RESERVED_NAMES:
        return f"{name!r} is a reserved name on Windows. Choose another."
    if len(name.encode()) > _MOST_NAME_BYTES:
        return f"is too long: {len(name.encode())} bytes, at most {_MOST_NAME_BYTES}."
    return ""


def _samples(config: TrainConfig) -> Iterator[Problem]:
    if not config.sample_prompts:
        if config.make_grid:
            yield _hint("sample_prompts", "is empty: there will be no samples and no grid to choose an epoch from.")
        return
    for number, line in enumerate(config.sample_prompts, start=1):
        yield from _prompt_line(line, f"sample_prompts[{number}]")
    triggers = [concept.trigger for concept in config.concepts if concept.trigger and not concept.is_regularisation]
    prompts = "\n".join(config.sample_prompts).lower()
    if triggers and not any(trigger.lower() in prompts for trigger in triggers):
        yield _hint("sample_prompts", f"none holds the trigger {triggers[0]!r}: the concept may not be seen.")


def _prompt_line(line: str, where: str) -> Iterator[Problem]:
    """Checks kohya's options behind a prompt; their meaning is given by `train.prompt`."""
    _, *options = re.split(r"(?:^|\s)--(?=\w)", line)
    for option in options:
        name, _, value = option.strip().partition(" ")
        if name == "n":
            continue
        if name not in _PROMPT_NUMBERS:
            yield _error(where, f"--{name} is not an option. There are --w --h --d --s --l --n.")
            continue
        yield from _prompt_number(name, value.strip(), where)


def _prompt_number(name: str, value: str, where: str) -> Iterator[Problem]:
    kind, low, high = _PROMPT_NUMBERS[name]
    try:
        number = kind(value)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        yield _error(where, f"--{name} needs {what}, not {value!r}.")
        return
    if not low <= number <= high:
        yield _error(where, f"--{name} {value} is outside {low:g}…{high:g}.")
    elif name in "wh" and number % _LATENT_STEP:
        yield _error(where, f"--{name} {value} is not a multiple of {_LATENT_STEP}. {_near(number, _LATENT_STEP)}")


_CHECKS: tuple[Callable[[TrainConfig], Iterator[Problem]], ...] = (
    _concepts,
    _buckets,
    judge_captions,
    _parts,
    _optimizer,
    _steps,
    judge_training,
    judge_network,
    _output,
    _samples,
)
