"""Optimiser arguments in the guides' syntax: `weight_decay=0.01 betas=0.9,0.99 decouple=True`."""

from __future__ import annotations

import ast
import re
from typing import Any

from lib_lora_train.core.errors import ConfigError, Problem

_NAME = re.compile(r"(?:^|(?<=\s))([A-Za-z_]\w*)\s*=")
_WORDS = {"true": True, "false": False, "none": None}


def parse_optimizer_args(text: str) -> dict[str, Any]:
    """The arguments by name, with values read as Python literals; `0.9,0.99` is a tuple.

    Quotes around pairs, as on kohya's command line, and commas after them are ignored.
    ConfigError with every pair that cannot be read.
    """
    text = re.sub(r"[\"'`]", " ", text).strip()
    names = list(_NAME.finditer(text))
    problems = []
    lead = text[: names[0].start()] if names else text
    if lead.strip():
        problems.append(_problem(f"{lead.strip()!r} is not in the form name=value."))
    arguments: dict[str, Any] = {}
    ends = [match.start() for match in names[1:]] + [len(text)]
    for match, end in zip(names, ends, strict=False):  # `ends` has one entry even without names
        name, raw = match[1], text[match.end() : end].strip().rstrip(",;").strip()
        if name in arguments:
            problems.append(_problem(f"{name} is given twice."))
        try:
            arguments[name] = _parse_literal(raw)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            reason = "has no value" if not raw else f"is {raw!r}, which is not a number, a tuple, True, False or None"
            problems.append(_problem(f"{name} {reason}."))
    if problems:
        raise ConfigError(problems)
    return arguments


def _parse_literal(raw: str) -> Any:
    if raw.lower() in _WORDS:
        return _WORDS[raw.lower()]
    value = ast.literal_eval(raw)
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, (bool, int, float, tuple)):
        raise ValueError
    return value


def _problem(message: str) -> Problem:
    return Problem("error", "optimizer_args", message)
