"""Prompt lines with kohya's options: `a cat on grass --n blurry --w 512 --h 768 --d 7 --s 20 --l 7.5`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError, Problem

_OPTION = re.compile(r"(?:^|\s)--(\S+)")
_SIZE_STEP, _LEAST_SIZE, _MOST_SIZE = 8, 64, 4096
_KNOWN = "--w width, --h height, --d seed, --s steps, --l cfg scale, --n negative prompt"
_ELSEWHERE = {"ss": "The sampler is the same for all prompts: set sample_sampler."}


@dataclass(frozen=True)
class SamplePrompt:
    """One image to draw; sizes in px, multiples of 8."""

    prompt: str
    negative: str
    width: int
    height: int
    seed: int
    steps: int
    cfg: float


def parse_prompt(line: str, defaults: SamplePrompt) -> SamplePrompt:
    """The image that a prompt line asks for; what it does not say is taken from `defaults`.

    ConfigError, with every problem of the line, for an unknown option, or a value that cannot be used.
    """
    pieces = _OPTION.split(line.strip())
    values: dict[str, Any] = {"prompt": pieces[0].strip()}
    problems = []
    for option, raw in zip(pieces[1::2], pieces[2::2], strict=True):
        try:
            name, value = _parsed(option, raw.strip())
            values[name] = value
        except ValueError as reason:
            problems.append(Problem("error", "sample_prompts", f"“{line.strip()}”: {reason}"))
    if problems:
        raise ConfigError(problems)
    return replace(defaults, **values)


def sample_prompts(config: TrainConfig) -> tuple[SamplePrompt, ...]:
    """The prompt lines with the run's defaults filled in; each prompt without `--d` gets a seed of its own."""
    defaults = SamplePrompt(
        prompt="",
        negative="",
        width=config.resolution,
        height=config.resolution,
        seed=config.seed,
        steps=config.sample_steps,
        cfg=config.sample_cfg,
    )
    return tuple(
        parse_prompt(line, replace(defaults, seed=config.seed + number))
        for number, line in enumerate(config.sample_prompts)
    )


def _parsed(option: str, raw: str) -> tuple[str, Any]:
    """Field name and value; ValueError with a sentence for the user."""
    if option == "n":
        return "negative", raw
    if option in ("w", "h"):
        return {"w": "width", "h": "height"}[option], _size(option, raw)
    if option == "d":
        return "seed", int(_number(option, raw, low=0, high=2**63 - 1, whole=True))
    if option == "s":
        return "steps", int(_number(option, raw, low=1, high=1000, whole=True))
    if option == "l":
        return "cfg", float(_number(option, raw, low=0, high=100))
    raise ValueError(f"--{option} is not an option here. {_ELSEWHERE.get(option, f'There are {_KNOWN}.')}")


def _size(option: str, raw: str) -> int:
    size = int(_number(option, raw, low=_LEAST_SIZE, high=_MOST_SIZE, whole=True))
    lower = size // _SIZE_STEP * _SIZE_STEP
    if lower != size:
        raise ValueError(
            f"--{option} {size} is not a multiple of {_SIZE_STEP}. Nearest: {lower} or {lower + _SIZE_STEP}."
        )
    return size


def _number(option: str, raw: str, *, low: int, high: int, whole: bool = False) -> int | float:
    kind = "a whole number" if whole else "a number"
    try:
        value = int(raw) if whole else float(raw)
    except ValueError:
        raise ValueError(f"--{option} needs {kind}, not {raw!r}.") from None
    if not low <= value <= high:
        raise ValueError(f"--{option} {raw} is outside {low}…{high}.")
    return value
