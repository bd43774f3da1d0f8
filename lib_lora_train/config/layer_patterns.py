"""Ranks and learning-rate factors of single layers: one `pattern = value` in each line.

In a pattern * stands for any text; one that begins with `re:` is a regular expression. It must fit a layer's whole
name, and the first pattern that fits counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from lib_lora_train.core.tag_patterns import wildcard_regex

REGEX_PREFIX = "re:"
_MAX_RANK = 1024


@dataclass(frozen=True)
class LayerRule:
    """A pattern and its value: a rank (0: the layer is left out) with an alpha (None: the run's scale), or a factor."""

    pattern: str
    value: float
    alpha: float | None = None

    @property
    def expression(self) -> str:
        """The pattern as a regular expression for the whole name."""
        is_regex = self.pattern.startswith(REGEX_PREFIX)
        return self.pattern.removeprefix(REGEX_PREFIX).strip() if is_regex else wildcard_regex(self.pattern)


def parse_layer_ranks(lines: Iterable[str]) -> tuple[LayerRule, ...]:
    """The rules of `layer_ranks`: `pattern = rank` or `pattern = rank/alpha`. ValueError with the reason."""
    rules = []
    for line in lines:
        pattern, value = _split(line)
        rank, slash, alpha = value.partition("/")
        number = _number(rank, line)
        if number != int(number) or number > _MAX_RANK:
            raise ValueError(f"{line!r} has no whole number up to {_MAX_RANK} as its rank")
        scale = _number(alpha, line) if slash else None
        if scale == 0:
            raise ValueError(f"{line!r} has an alpha of 0, with which nothing is learnt")
        rules.append(LayerRule(pattern, number, scale))
    return tuple(rules)


def parse_layer_weights(lines: Iterable[str]) -> tuple[LayerRule, ...]:
    """The rules of `layer_lr_weights`: `pattern = factor`. ValueError with the reason."""
    return tuple(LayerRule(pattern, _number(value, line)) for line in lines for pattern, value in (_split(line),))


def _split(line: str) -> tuple[str, str]:
    pattern, sign, value = line.rpartition("=")
    if not sign or not pattern.strip():
        raise ValueError(f"{line!r} is not of the form pattern = number, such as *attn2* = 32")
    try:
        re.compile(LayerRule(pattern.strip(), 0).expression)
    except re.error as error:
        raise ValueError(f"{pattern.strip()!r} is not a regular expression: {error}") from None
    return pattern.strip(), value.strip()


def _number(text: str, line: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{line!r} does not end in a number") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{line!r} has a number below 0 or none at all")
    return number
