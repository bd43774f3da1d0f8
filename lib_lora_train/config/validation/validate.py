"""Judgement of a config as a whole: what cannot work, what will disappoint, and why.

`read_config` has checked every value by itself. Here they are looked at together, without touching the disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from lib_lora_train.config.problems import error_at, hint_at, warning_at
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.captions import validate_captions
from lib_lora_train.config.validation.concepts import validate_concepts
from lib_lora_train.config.validation.network import validate_network
from lib_lora_train.config.validation.optimizer import validate_optimizer
from lib_lora_train.config.validation.training import validate_training
from lib_lora_train.core.errors import ConfigError, Level, Problem

_LATENT_STEP = 8  # px per latent cell in every Stable Diffusion
_UNET_STEP = 64  # px: the UNet of SD1 and SD2 halves the latent three times
_MOST_NAME_BYTES = 200  # file systems allow 255; room for the epoch's number and an unfinished file's ending

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


def validate(config: TrainConfig) -> tuple[Problem, ...]:
    """Every finding about the config: errors first, then warnings, then hints."""
    found = [problem for check in _CHECKS for problem in check(config)]
    order: list[Level] = ["error", "warning", "hint"]
    return tuple(sorted(found, key=lambda problem: order.index(problem.level)))


def require_usable(problems: Iterable[Problem]) -> None:
    """Raises ConfigError with all errors among `problems`, if there are any."""
    errors = [problem for problem in dict.fromkeys(problems) if problem.level == "error"]
    if errors:
        raise ConfigError(errors)


# --- data ---------------------------------------------------------------------------------------


def _buckets(config: TrainConfig) -> Iterator[Problem]:
    step = config.bucket_step
    if step % _LATENT_STEP:
        yield error_at(
            "bucket_step", f"{step} is not a multiple of {_LATENT_STEP}, the size of a latent cell. {_near(step, 8)}"
        )
    elif step % _UNET_STEP:
        yield warning_at(
            "bucket_step",
            f"{step} is not a multiple of {_UNET_STEP}: SD1 and SD2 halve the latent three times and round odd sides "
            "on the way. 64 suits all models, 32 SDXL.",
        )
    if config.enable_buckets:
        yield from _bucket_limits(config)
        return
    if config.resolution % step:
        yield error_at(
            "resolution",
            f"{config.resolution} is not a multiple of bucket_step {step}. {_near(config.resolution, step)}",
        )
    if config.bucket_no_upscale:
        yield hint_at("bucket_no_upscale", "has no effect while enable_buckets is off.")


def _bucket_limits(config: TrainConfig) -> Iterator[Problem]:
    step, resolution = config.bucket_step, config.resolution
    if resolution < step:
        yield error_at("resolution", f"{resolution} is smaller than one bucket_step, {step}.")
    elif resolution % step:
        side = resolution // step * step
        text = f"{resolution} is not a multiple of bucket_step {step}; the square bucket has {side} px."
        yield warning_at("resolution", f"{text} {_near(resolution, step)}")
    if config.bucket_no_upscale:
        return  # kohya's rule: buckets then follow the images, not the limits
    for name in ("min_bucket", "max_bucket"):
        side = getattr(config, name)
        if side % step:
            yield error_at(name, f"{side} is not a multiple of bucket_step {step}. {_near(side, step)}")
    if config.min_bucket > config.max_bucket:
        yield error_at("min_bucket", f"{config.min_bucket} is larger than max_bucket {config.max_bucket}.")
    elif config.min_bucket > resolution:
        yield error_at(
            "min_bucket", f"{config.min_bucket} is larger than the resolution {resolution}; {resolution // 2} is usual."
        )
    elif config.max_bucket < resolution:
        yield error_at(
            "max_bucket", f"{config.max_bucket} is smaller than the resolution {resolution}; {resolution * 2} is usual."
        )


def _near(value: int, step: int) -> str:
    below = value // step * step
    return f"Nearest: {below} or {below + step}." if below else f"Nearest: {step}."


# --- training -----------------------------------------------------------------------------------


def _steps(config: TrainConfig) -> Iterator[Problem]:
    if config.max_steps and config.warmup >= max(1, config.max_steps):
        yield warning_at(
            "warmup", f"{config.warmup:g} steps are not over when max_steps {config.max_steps} ends the run."
        )
    if config.save_every_n_epochs > config.epochs:
        yield hint_at("save_every_n_epochs", f"is more than the {config.epochs} epochs: only the last one is written.")


# --- output and samples -------------------------------------------------------------------------


def _output(config: TrainConfig) -> Iterator[Problem]:
    reason = _unusable_name(config.output_name)
    if reason:
        yield error_at("output_name", reason)
    yield from _kept_files(config)


def _kept_files(config: TrainConfig) -> Iterator[Problem]:
    if config.save_from_epoch > config.epochs:
        yield hint_at("save_from_epoch", f"is beyond the {config.epochs} epochs: only the last one is written.")
    if config.keep_last_step_files and not config.save_every_n_steps:
        yield hint_at("keep_last_step_files", "has no effect while save_every_n_steps is 0.")
    if config.keep_last_epochs:
        text = f"deletes all but the last {config.keep_last_epochs} of this run; the best one is often earlier."
        yield hint_at("keep_last_epochs", text)
    if not config.save_state:
        text = "is off: if the run is stopped or the machine fails, it cannot be resumed or made longer."
        yield hint_at("save_state", text)
        if config.save_state_every_n_steps:
            yield hint_at("save_state_every_n_steps", "has no effect while save_state is off.")


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
            yield hint_at("sample_prompts", "is empty: there will be no samples and no grid to choose an epoch from.")
        return
    for number, line in enumerate(config.sample_prompts, start=1):
        yield from _prompt_line(line, f"sample_prompts[{number}]")
    triggers = [concept.trigger for concept in config.concepts if concept.trigger and not concept.is_regularisation]
    if config.webui_sampler and config.sample_every_n_epochs % config.save_every_n_epochs:
        yield hint_at(
            "webui_sampler", "the webui draws from files: epochs without one (save_every_n_epochs) get no samples."
        )
    prompts = "\n".join(config.sample_prompts).lower()
    if triggers and not any(trigger.lower() in prompts for trigger in triggers):
        yield hint_at("sample_prompts", f"none holds the trigger {triggers[0]!r}: the concept may not be seen.")


def _prompt_line(line: str, where: str) -> Iterator[Problem]:
    """Checks kohya's options behind a prompt; their meaning is given by `train.prompt`."""
    _, *options = re.split(r"(?:^|\s)--(?=\w)", line)
    for option in options:
        name, _, value = option.strip().partition(" ")
        if name == "n":
            continue
        if name not in _PROMPT_NUMBERS:
            yield error_at(where, f"--{name} is not an option. There are --w --h --d --s --l --n.")
            continue
        yield from _prompt_number(name, value.strip(), where)


def _prompt_number(name: str, value: str, where: str) -> Iterator[Problem]:
    kind, low, high = _PROMPT_NUMBERS[name]
    try:
        number = kind(value)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        yield error_at(where, f"--{name} needs {what}, not {value!r}.")
        return
    if not low <= number <= high:
        yield error_at(where, f"--{name} {value} is outside {low:g}…{high:g}.")
    elif name in "wh" and number % _LATENT_STEP:
        yield error_at(where, f"--{name} {value} is not a multiple of {_LATENT_STEP}. {_near(number, _LATENT_STEP)}")


_CHECKS: tuple[Callable[[TrainConfig], Iterator[Problem]], ...] = (
    validate_concepts,
    _buckets,
    validate_captions,
    validate_optimizer,
    _steps,
    validate_training,
    validate_network,
    _output,
    _samples,
)
