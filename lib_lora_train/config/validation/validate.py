"""Validation of a whole config: what cannot work, what will probably disappoint, and why.

`read_config` has checked each value by itself. Here combinations are checked, without touching the disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from lib_lora_train.config.problems import error_at, hint_at, off_step, warning_at
from lib_lora_train.config.sample_prompts import (
    is_comment,
    mentions_trigger,
    prompt_lines,
    validate_prompt,
    writes_own_prompts,
)
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.captions import validate_captions
from lib_lora_train.config.validation.concepts import validate_concepts
from lib_lora_train.config.validation.method import validate_method
from lib_lora_train.config.validation.network import validate_network
from lib_lora_train.config.validation.optimizer import validate_optimizer
from lib_lora_train.config.validation.training import validate_training
from lib_lora_train.core.errors import LEVELS, ConfigError, Problem
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.core.wording import count

_MAX_NAME_BYTES = 200  # file systems allow 255; the rest is for the epoch number and the file ending
_FORBIDDEN_IN_NAMES = '<>:"|?*'
_RESERVED_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}


def validate(config: TrainConfig) -> tuple[Problem, ...]:
    """All problems of the config: errors first, then warnings, then hints."""
    found = [problem for check in _CHECKS for problem in check(config)]
    return tuple(sorted(found, key=lambda problem: LEVELS.index(problem.level)))


def all_problems(config: TrainConfig, unread: Iterable[Problem]) -> tuple[Problem, ...]:
    """The problems of values that could not be read, then those of the config.

    What could not be read has its default in the config, which nobody chose, so that is not checked.
    """
    unread = tuple(unread)
    places = {problem.where for problem in unread}
    return (*unread, *(problem for problem in validate(config) if problem.where not in places))


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether any of the problems prevents a run."""
    return any(problem.level == "error" for problem in problems)


def require_usable(problems: Iterable[Problem]) -> None:
    """Raise ConfigError with all errors among `problems`, if there are any."""
    errors = [problem for problem in dict.fromkeys(problems) if problem.level == "error"]
    if errors:
        raise ConfigError(errors)


# --- data ---------------------------------------------------------------------------------------


def _buckets(config: TrainConfig) -> Iterator[Problem]:
    step = config.bucket_step
    if step % LATENT_CELL_PX:
        yield error_at(
            "bucket_step",
            f"{step} is not a multiple of {LATENT_CELL_PX}, the size of a latent cell. {_near(step, LATENT_CELL_PX)}",
        )
    if config.enable_buckets:
        yield from _bucket_limits(config)
        return
    for where, side in zip(("resolution", "resolution_height"), config.resolution_size, strict=True):
        if side % step and (where == "resolution" or config.resolution_height is not None):
            yield error_at(where, f"{side} is not a multiple of bucket_step {step}. {_near(side, step)}")
    if config.bucket_no_upscale:
        yield hint_at("bucket_no_upscale", "has no effect while enable_buckets is off.")


def _bucket_limits(config: TrainConfig) -> Iterator[Problem]:
    step, resolution = config.bucket_step, config.resolution_side
    is_square = config.resolution_size == (resolution, resolution)
    if resolution < step:
        yield error_at("resolution", f"{resolution} is smaller than bucket_step {step}.")
    elif resolution % step and is_square:  # of a rectangle only the area counts
        yield warning_at("resolution", f"{off_step(resolution, step)} {_near(resolution, step)}")
    if config.bucket_no_upscale:
        return  # as in sd-scripts, buckets then follow the images and ignore the limits
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
            "warmup", f"{count(config.warmup, 'step')} is not shorter than the run (max_steps {config.max_steps})."
        )
    if config.save_every_n_epochs > config.epochs:
        yield hint_at(
            "save_every_n_epochs", f"is more than the {count(config.epochs, 'epoch')}: only the last one is saved."
        )


# --- output and samples -------------------------------------------------------------------------


def _output(config: TrainConfig) -> Iterator[Problem]:
    reason = unusable_name(config.output_name)
    if reason:
        yield error_at("output_name", reason)
    yield from _kept_files(config)


def _kept_files(config: TrainConfig) -> Iterator[Problem]:
    if config.save_from_epoch > config.epochs:
        yield hint_at(
            "save_from_epoch", f"is after the last of {count(config.epochs, 'epoch')}: only that one is saved."
        )
    if config.keep_last_step_files and not config.save_every_n_steps:
        yield hint_at("keep_last_step_files", "has no effect while save_every_n_steps is 0.")
    if config.keep_last_epochs:
        text = (
            f"deletes all of this run but the last {count(config.keep_last_epochs, 'file')}; the best epoch is often "
            "earlier."
        )
        yield hint_at("keep_last_epochs", text)
    if not config.save_state:
        text = "is off: the run cannot be resumed after a stop or crash, nor extended."
        yield hint_at("save_state", text)
        if config.save_state_every_n_steps:
            yield hint_at("save_state_every_n_steps", "has no effect while save_state is off.")


def unusable_name(name: str) -> str:
    """Why this cannot be a file name on every system and a LoRA name in prompts; "" if it can."""
    if not name:
        return "is empty. Give the LoRA a name."
    if re.search(r"[\\/]", name) or name in (".", ".."):
        return f"{name!r} contains a path. Enter only the name, without a folder."
    forbidden = sorted({c for c in name if c in _FORBIDDEN_IN_NAMES or not c.isprintable()})
    if forbidden:
        shown = " ".join(c if c.isprintable() else repr(c) for c in forbidden)
        return f"{name!r} contains characters that are not allowed in file names or <lora:name:1>: {shown}"
    if name.lower().endswith(".safetensors"):
        return f"{name!r} has a file ending, which is added automatically. Enter {name[: -len('.safetensors')]!r}."
    if name[0] in ". " or name[-1] in ". ":
        return f"{name!r} begins or ends with a dot or space, which hides the file or is lost on Windows."
    if name.split(".")[0].upper() in _RESERVED_NAMES:
        return f"{name!r} is a reserved name on Windows. Choose another."
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"is too long: {count(len(name.encode()), 'byte')}, but at most {_MAX_NAME_BYTES} are allowed."
    return ""


def _early_stopping(config: TrainConfig) -> Iterator[Problem]:
    is_measured = config.validation_share or (config.measure_likeness and config.sample_every_n_epochs)
    if config.early_stopping_epochs and not is_measured:
        text = "has no effect: it needs the validation loss (validation_share) or measure_likeness with samples."
        yield Problem("warning", "early_stopping_epochs", text, (("measure_likeness", True),))


def _samples(config: TrainConfig) -> Iterator[Problem]:
    prompts = prompt_lines(config.sample_prompts)
    if writes_own_prompts(config):
        text = "is empty: the run writes its own prompts from trigger words, class words and captions."
        yield hint_at("sample_prompts", f"{text} Without samples: sample_every_n_epochs = 0.")
        return
    if not prompts:
        if config.make_grid:
            yield hint_at("sample_prompts", "is empty: there will be no samples and no grid to choose an epoch from.")
        return
    for number, line in enumerate(config.sample_prompts, start=1):
        if not is_comment(line):
            for message in validate_prompt(line):
                yield error_at(f"sample_prompts[{number}]", message)
    if config.webui_sampler and config.sample_every_n_epochs % config.save_every_n_epochs:
        text = "needs LoRA files: epochs without one (see save_every_n_epochs) get no samples."
        yield hint_at("webui_sampler", text)
    if config.triggers and not any(mentions_trigger(prompt, config.triggers) for prompt in prompts):
        yield hint_at(
            "sample_prompts", f"do not contain the trigger {config.triggers[0]!r}: samples may not show the concept."
        )


_CHECKS: tuple[Callable[[TrainConfig], Iterator[Problem]], ...] = (
    validate_concepts,
    _buckets,
    validate_captions,
    validate_optimizer,
    _steps,
    validate_training,
    validate_method,
    validate_network,
    _output,
    _samples,
    _early_stopping,
)
