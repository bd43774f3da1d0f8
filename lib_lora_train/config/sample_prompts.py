"""Sample prompts in kohya's syntax: `a cat on grass --n blurry --w 512 --h 768 --d 7 --s 20 --l 7.5`.

Validation, the sampler and the import of kohya's settings all read prompt lines here. As in sd-scripts, lines that
begin with # are comments, options may be upper case, and an option may follow a number without a space
(`--w 512--h 512`; sd-scripts drops everything after that number, here the second option counts too).
Unlike sd-scripts, an invalid option is an error: it is not ignored, rounded or clamped.

Prompts are of two groups: the *concept* must change them, and *control* prompts must stay as they are without the
LoRA. The comments `# concept` and `# control` are headings: they say the group of the lines below them. Lines without
a heading belong to the concept if they contain one of its trigger words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError, Problem
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.core.words import has_word

_OPTION = re.compile(r"(?:^|\s+)--(?=\w)")
_JOINED = re.compile(r"(--[a-z]+\s+[\d.]+)(?=--[a-z])", re.IGNORECASE)  # `--w 512` of `--w 512--h 512`
_HEADING = re.compile(r"#+\s*(concept|control)\s*(?:[:(].*)?", re.IGNORECASE)


CONCEPT_HEADING, CONTROL_HEADING = "# concept", "# control"
"""The comments that begin a group of prompts."""


@dataclass(frozen=True)
class _Option:
    """An option: the `SamplePrompt` field it sets, its title, and the setting whose type and range it has."""

    field: str
    title: str
    setting: Parameter | None = None
    """None for text."""


_SETTINGS = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}
_OPTIONS = {
    "w": _Option("width", "width", _SETTINGS["max_bucket"]),
    "h": _Option("height", "height", _SETTINGS["max_bucket"]),
    "d": _Option("seed", "seed", _SETTINGS["seed"]),
    "s": _Option("steps", "steps", _SETTINGS["sample_steps"]),
    "l": _Option("cfg", "CFG scale", _SETTINGS["sample_cfg"]),
    "n": _Option("negative", "negative prompt"),
}
_KNOWN = ", ".join(f"--{name} {option.title}" for name, option in _OPTIONS.items())
_UNSUPPORTED = {
    "ss": "All samples use one sampler; set it with sample_sampler.",
    "cn": "ControlNet is not supported in samples.",
}


@dataclass(frozen=True)
class SamplePrompt:
    """One sample image to generate; sizes in px, multiples of 8."""

    prompt: str
    negative: str
    width: int
    height: int
    seed: int
    steps: int
    cfg: float
    is_control: bool = False
    """Whether the LoRA must not change it."""


@dataclass(frozen=True)
class PromptGroups:
    """The places (from 0) of the sample prompts that the concept must change, and of those that must not change."""

    concept: tuple[int, ...]
    control: tuple[int, ...]


def sample_prompts(config: TrainConfig) -> tuple[SamplePrompt, ...]:
    """The run's sample prompts. Without `--d`, the n-th prompt (from 0) gets the run's seed + n.

    ConfigError with every problem of every line.
    """
    defaults = SamplePrompt(
        prompt="",
        negative="",
        width=config.resolution_size[0],
        height=config.resolution_size[1],
        seed=config.seed,
        steps=config.sample_steps,
        cfg=config.sample_cfg,
    )
    lines = prompt_lines(config.sample_prompts)
    control = prompt_groups(config).control
    return tuple(
        parse_prompt(line, replace(defaults, seed=config.seed + n, is_control=n in control))
        for n, line in enumerate(lines)
    )


def prompt_groups(config: TrainConfig) -> PromptGroups:
    """Which of the run's sample prompts are control prompts: by their heading, otherwise by the trigger words.

    Without trigger words everything may change, so that only headings make control prompts.
    """
    flags = list(_control_flags(config.sample_prompts, config.triggers))
    return PromptGroups(
        concept=tuple(place for place, is_control in enumerate(flags) if not is_control),
        control=tuple(place for place, is_control in enumerate(flags) if is_control),
    )


def _control_flags(lines: Iterable[str], triggers: Sequence[str]) -> Iterator[bool]:
    """Whether each prompt, without the comments, is a control prompt."""
    heading = ""
    for line in lines:
        if found := _HEADING.fullmatch(line.strip()):
            heading = found[1].lower()
        elif not is_comment(line):
            is_unprompted = bool(triggers) and not mentions_trigger(split_options(line)[0], triggers)
            yield heading == "control" if heading else is_unprompted


def mentions_trigger(prompt: str, triggers: Iterable[str]) -> bool:
    """Whether the prompt contains all words of one of the triggers."""
    return any(all(has_word(prompt, tag.strip()) for tag in trigger.split(",") if tag.strip()) for trigger in triggers)


def writes_own_prompts(config: TrainConfig) -> bool:
    """Whether the run writes its sample prompts itself: the user has written none, and samples are not off."""
    is_off = not (config.sample_every_n_epochs or config.sample_every_n_steps)
    return not is_off and not prompt_lines(config.sample_prompts)


def prompt_lines(lines: Iterable[str]) -> tuple[str, ...]:
    """The lines that are prompts, without comments."""
    return tuple(line.strip() for line in lines if not is_comment(line))


def is_comment(line: str) -> bool:
    """Whether the line is a comment, which begins with #."""
    return line.lstrip().startswith("#")


def is_heading(line: str) -> bool:
    """Whether the line is a comment that begins a group of prompts."""
    return _HEADING.fullmatch(line.strip()) is not None


def parse_prompt(line: str, defaults: SamplePrompt) -> SamplePrompt:
    """The sample image that a line describes; `defaults` fill in what it does not set.

    ConfigError with every problem of the line.
    """
    prompt, options = split_options(line)
    values: dict[str, Any] = {"prompt": prompt}
    problems = []
    for name, raw in options:
        try:
            field, value = _parse_option(name, raw)
            values[field] = value
        except ValueError as reason:
            problems.append(Problem("error", "sample_prompts", f"“{line.strip()}”: {reason}"))
    if problems:
        raise ConfigError(problems)
    return replace(defaults, **values)


def validate_prompt(line: str) -> Iterator[str]:
    """A sentence for every problem of a prompt line."""
    for name, raw in split_options(line)[1]:
        try:
            _parse_option(name, raw)
        except ValueError as reason:
            yield str(reason)


def split_options(line: str) -> tuple[str, list[tuple[str, str]]]:
    """The prompt, and its options as (lower-case name, raw value): `a cat --W 512` → ("a cat", [("w", "512")])."""
    prompt, *parts = _OPTION.split(_JOINED.sub(r"\1 ", line.strip()))
    words = (part.split(maxsplit=1) for part in parts)
    return prompt.strip(), [(name.lower(), rest[0].strip() if rest else "") for name, *rest in words]


def is_option(name: str) -> bool:
    """Whether prompts have an option of this name (without hyphens)."""
    return name in _OPTIONS


def _parse_option(name: str, raw: str) -> tuple[str, Any]:
    """Field name and value; ValueError with a sentence for the user."""
    option = _OPTIONS.get(name)
    if option is None:
        raise ValueError(f"--{name} is not supported. {_UNSUPPORTED.get(name, f'The options are {_KNOWN}.')}")
    if option.setting is None:
        return option.field, raw
    value = _parse_number(name, raw.rstrip(" ,;"), option.setting)
    if option.field in ("width", "height"):
        _check_size(name, int(value))
    return option.field, value


def _parse_number(name: str, raw: str, setting: Parameter) -> int | float:
    try:
        value: int | float = setting.kind(raw)
    except ValueError:
        kind = "a whole number" if setting.kind is int else "a number"
        raise ValueError(f"--{name} needs {kind}, not {raw!r}.") from None
    if not setting.includes(value):
        raise ValueError(f"--{name} {raw} is outside {setting.low}…{setting.high}.")
    return value


def _check_size(name: str, size: int) -> None:
    below = size // LATENT_CELL_PX * LATENT_CELL_PX
    if below != size:
        nearest = f"{below} or {below + LATENT_CELL_PX}"
        raise ValueError(f"--{name} {size} is not a multiple of {LATENT_CELL_PX}. Nearest: {nearest}.")
