"""The state of an import: which keys are still to be read, and what became of the others. Tolerant of types."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lib_lora_train.config.parameters import Parameter, parameters_of, parse_value
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem
from lib_lora_train.core.wording import did_you_mean
from lib_lora_train.formats.kohya.keys import ALIASES

PARAMETERS = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}
Source = Literal["gui", "script", "metadata"]

AT_DEFAULT = "has kohya's default value"
AT_DEFAULT_THERE = "is at its default there"
EMPTY = "is empty"
ZERO = "is 0, which means off in kohya's tools"
FACT = "describes that run and is not a setting"
NOT_NEEDED = "is not needed"
NOT_YET = "is not supported yet"
REPLACED = "is replaced by what its warning says"
ONLY_HERE = "is not for training, and only this program has it"
NO_EFFECT = "has no effect with these settings"
SOMETIMES = "matters only for"
_HARMLESS = (AT_DEFAULT, AT_DEFAULT_THERE, EMPTY, ZERO, FACT, NOT_NEEDED, ONLY_HERE, NO_EFFECT)


@dataclass(frozen=True)
class IgnoredKey:
    """A key of the file that is not in the config; `reason` completes the sentence “KEY …”."""

    key: str
    value: Any
    reason: str

    @property
    def is_harmless(self) -> bool:
        """True if nothing is lost: the key would change nothing here."""
        return self.reason.startswith(_HARMLESS)


def unknown(name: str, known: Iterable[str]) -> str:
    """The reason for a key that is not one of the known ones, with the most similar of them."""
    return f"is not a known setting.{did_you_mean(name, known)}"


def kohya_parameters() -> dict[str, Parameter]:
    """The run's parameters by their sd-scripts name."""
    return {parameter.kohya: parameter for parameter in parameters_of(TrainConfig) if parameter.kohya}


def strip_value(raw: Any) -> Any:
    """The value, stripped of white space; None for "", "None", NaN and empty lists, which all mean "not set"."""
    if isinstance(raw, str):
        text = raw.strip()
        return None if text.lower() in ("", "none", "null") else text
    if (isinstance(raw, float) and math.isnan(raw)) or (isinstance(raw, (list, tuple, dict)) and not raw):
        return None
    return raw


def parse_number(raw: Any) -> float | None:
    """A finite number, also from text; None for anything else."""
    if isinstance(raw, bool):
        return None
    try:
        number = float(raw)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def parse_sides(raw: Any) -> list[float]:
    """The one or two sides in 512, "512,512", [512, 512], "(512, 512)" or "512x512"; empty for anything else."""
    texts = [raw]
    if isinstance(raw, (list, tuple)):
        texts = list(raw)
    elif isinstance(raw, str):
        texts = re.split(r"[,x×\s]+", raw.strip("()[] "))
    sides = [side for side in map(parse_number, texts) if side]
    return sides if 1 <= len(sides) <= 2 and min(sides) >= 1 else []


def square_side(sides: Sequence[float]) -> int:
    """The side of the square with the area of one or two sides."""
    return round(math.sqrt(sides[0]) * math.sqrt(sides[-1]))


def parse_flag(raw: Any) -> bool:
    """True for every spelling of "on"."""
    number = parse_number(raw)
    return bool(number) if number is not None else raw is True or str(raw).strip().lower() in ("true", "yes", "on")


def is_same(value: Any, default: Any) -> bool:
    """Whether a value equals the default, in any type; 0 counts as empty."""
    if isinstance(default, bool):
        return parse_flag(value) == default
    if parse_number(default) is not None or parse_number(value) is not None:
        return parse_number(value) == (parse_number(default) or 0)
    return str(value).strip() == str(default)


def parse_literal(raw: Any) -> Any:
    """A list, table or pair written as text, parsed; other values unchanged."""
    if not isinstance(raw, str) or not raw.strip().startswith(("[", "(", "{")):
        return raw
    for read in (json.loads, ast.literal_eval):
        try:
            return read(raw)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return raw


class ImportState:
    """The keys that remain to be read, the values read so far, and what was ignored.

    A rule `pop`s a key, which then counts as used unless the rule calls `ignore` for it.
    """

    def __init__(self, keys: Mapping[str, Any], source: Source) -> None:
        self.source = source
        self.values: dict[str, Any] = {}
        self.ignored: list[IgnoredKey] = []
        self.problems: list[Problem] = []
        self._given: dict[str, str] = {}
        self._used: dict[str, str] = {}
        self._remaining: dict[str, Any] = {}
        self.asked_for: set[str] = set()
        """The names of all keys that a rule has asked for, whether the file has them or not."""
        for key, raw in sorted(
            keys.items(), key=lambda entry: entry[0] in ALIASES
        ):  # aliases last: the proper names take precedence
            self._add(str(key), raw)

    def _add(self, key: str, raw: Any) -> None:
        name, value = ALIASES.get(key, key), strip_value(raw)
        if value is None:
            self.ignored.append(IgnoredKey(key, raw, EMPTY))
        elif name in self._remaining:
            self.ignored.append(IgnoredKey(key, raw, f"is also given as {self._given[name]}, which is used"))
        else:
            self._remaining[name] = value
            self._given[name] = key

    @property
    def used_keys(self) -> tuple[str, ...]:
        """The keys that are in the config, as the file spells them."""
        return tuple(self._used.values())

    @property
    def remaining(self) -> tuple[str, ...]:
        """The names that no rule has read yet."""
        return tuple(self._remaining)

    def value(self, name: str) -> Any:
        """The value of a key, which remains; None if there is none."""
        self.asked_for.add(name)
        return self._remaining.get(name)

    def __contains__(self, name: str) -> bool:
        self.asked_for.add(name)
        return name in self._remaining

    def is_empty(self, name: str) -> bool:
        """Whether the file has the key, without a value."""
        return any(ignored.key == name and ignored.reason == EMPTY for ignored in self.ignored)

    def set_default(self, name: str, value: Any) -> bool:
        """Add kohya's own value for a key that the file does not have; False if it has it."""
        if name in self._remaining:
            return False
        self._remaining[name] = value
        return True

    def add_nested(self, key: str, name: str, value: Any) -> None:
        """Add a setting from inside the text of another key."""
        if name not in self._remaining:
            self._remaining[name], self._given[name] = value, f"{key}: {name}"

    def override(self, key: str, name: str, value: Any) -> None:
        """Add a setting from inside the text of another key; it takes precedence over the separate key."""
        if name in self._remaining:
            self.ignore(name, self._remaining[name], overridden_by(key))
        self.add_nested(key, name, value)

    def pop(self, name: str) -> Any:
        """The value, None if there is none."""
        if name not in self:
            return None
        if name in self._given:
            self._used[name] = self._given[name]
        return self._remaining.pop(name)

    def pop_number(self, name: str) -> float | None:
        """The value as a number; anything else is ignored with the reason."""
        raw = self.pop(name)
        number = parse_number(raw)
        if raw is not None and number is None:
            self.ignore(name, raw, "is not a number")
        return number

    def pop_flag(self, name: str) -> bool:
        """Whether the value says "on"."""
        return parse_flag(self.pop(name))

    def ignore(self, name: str, value: Any, reason: str) -> None:
        """Ignore a key; nothing is reported if it was a default and not in the file."""
        self._remaining.pop(name, None)
        self._used.pop(name, None)
        if name in self._given:
            self.ignored.append(IgnoredKey(self._given[name], value, reason))

    def ignore_nested(self, name: str, part: str, value: Any, reason: str) -> None:
        """Ignore a part of a key's text; the rest may be used."""
        self.ignored.append(IgnoredKey(f"{self._given.get(name, name)}: {part}", value, reason))

    def warn(self, where: str, message: str) -> None:
        """Report that something in the file is trained differently here."""
        self.problems.append(Problem("warning", where, message))

    def replace(self, name: str, value: Any, *, where: str, message: str) -> None:
        """Ignore a key of which a warning says what is used instead, so that it is reported once."""
        self.ignore(name, value, REPLACED)
        self.warn(where, message)

    def hint(self, where: str, message: str) -> None:
        """Report how something in the file was interpreted."""
        self.problems.append(Problem("hint", where, message))

    def set_parameter(self, parameter: Parameter, name: str, raw: Any) -> None:
        """Set a parameter from the value as its declaration parses it; an invalid one is ignored with the reason.

        A positive number outside the parameter's range becomes the nearest one in it, with a warning.
        """
        try:
            self.values[parameter.name] = parse_value(parameter, _normalised(parameter, raw))
        except ValueError as reason:
            nearest = _nearest(parameter, raw)
            if nearest is not None:
                self.values[parameter.name] = nearest
                self.warn(parameter.name, f"{reason}. {nearest:g} is used, the nearest value.")
                return
            is_off = parse_number(raw) == 0 and parameter.kind is not bool
            self.ignore(name, raw, ZERO if is_off else invalid(raw, reason))


def invalid(raw: Any, reason: ValueError) -> str:
    """The reason for a value that `parse_value` refused; the value is shown before it, so it is not repeated."""
    sentence = str(reason)
    value = f"{raw!r} "
    return sentence.removeprefix(value) if sentence.startswith(value) else f"is invalid: {sentence}"


def not_available(given: str, used: str, known: Iterable[str]) -> str:
    """The sentence about a value that is not available here, with what is used and what may have been meant."""
    hint = did_you_mean(given, known)
    if not hint or f"'{used}'" in hint:
        return f"{given} is not available; {used} is used, the closest."
    return f"{given} is not available.{hint} Until you choose it, {used} is used."


def overridden_by(key: str) -> str:
    """The reason for a key that another one overrides."""
    return f"{NOT_NEEDED}: {key} takes precedence, as in kohya's tools"


def _nearest(parameter: Parameter, raw: Any) -> float | int | None:
    """The value of the range that is nearest to a positive number outside it; None for anything else."""
    number = parse_number(raw)
    if number is None or number <= 0 or parameter.kind not in (int, float):
        return None
    for bound, is_outside in (
        (parameter.low, number < (parameter.low or 0)),
        (parameter.high, number > (parameter.high or number)),
    ):
        if bound is not None and is_outside:
            return parameter.kind(bound)
    return None


def _normalised(parameter: Parameter, raw: Any) -> Any:
    """`raw` in our spelling."""
    if parameter.kind is bool and parse_number(raw) is not None:
        return bool(parse_number(raw))
    if parameter.choices and isinstance(raw, str):
        return find_choice(parameter, raw) or raw
    return raw


def find_choice(parameter: Parameter, raw: str) -> str:
    """The matching choice, ignoring case, blanks and underscores; "" if there is none."""
    plain = _plain(raw)
    return next((choice for choice in parameter.choices if _plain(choice) == plain), "")


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).lower()
