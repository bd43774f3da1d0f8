"""Foreign settings on their way into ours: tolerant of types, and with an account of every key."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lib_lora_train.config.parameters import Parameter, parameters_of, parse_value
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem
from lib_lora_train.formats.kohya.keys import ALIASES

Source = Literal["gui", "script", "metadata"]

AT_DEFAULT = "stands at kohya's default"
EMPTY = "is empty"
ZERO = "is 0, kohya's way to leave it out"
FACT = "tells about that run and is no setting"
NOT_NEEDED = "is not needed"
NOT_YET = "is not supported yet"
UNKNOWN = "is not known here"
_QUIET = (AT_DEFAULT, EMPTY, ZERO, FACT, NOT_NEEDED)


@dataclass(frozen=True)
class Ignored:
    """A key of the file that has no part in the config; `reason` completes the sentence “KEY …”."""

    key: str
    value: Any
    reason: str

    @property
    def is_quiet(self) -> bool:
        """True where nothing is lost: the key would change nothing here."""
        return self.reason.startswith(_QUIET)


def kohya_parameters() -> dict[str, Parameter]:
    """The run's parameters by their name in sd-scripts."""
    return {parameter.kohya: parameter for parameter in parameters_of(TrainConfig) if parameter.kohya}


def cleaned(raw: Any) -> Any:
    """The value without blanks around it; None for "", "None", NaN and empty lists, which all say "not set"."""
    if isinstance(raw, str):
        text = raw.strip()
        return None if text.lower() in ("", "none", "null") else text
    if (isinstance(raw, float) and math.isnan(raw)) or (isinstance(raw, (list, tuple, dict)) and not raw):
        return None
    return raw


def number_of(raw: Any) -> float | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(raw, bool):
        return None
    try:
        number = float(raw)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def sides_of(raw: Any) -> list[float]:
    """The one or two sides of 512, "512,512", [512, 512], "(512, 512)" and "512x512"; none for anything else."""
    texts = [raw]
    if isinstance(raw, (list, tuple)):
        texts = list(raw)
    elif isinstance(raw, str):
        texts = re.split(r"[,x×\s]+", raw.strip("()[] "))
    sides = [side for side in map(number_of, texts) if side]
    return sides if 1 <= len(sides) <= 2 and min(sides) >= 1 else []


def square_side(sides: Sequence[float]) -> int:
    """The side of the square with the area of one or two sides."""
    return round(math.sqrt(sides[0]) * math.sqrt(sides[-1]))


def flag_of(raw: Any) -> bool:
    """True for what people and programs write for "on"."""
    number = number_of(raw)
    return bool(number) if number is not None else raw is True or str(raw).strip().lower() in ("true", "yes", "on")


def is_same(value: Any, default: Any) -> bool:
    """Whether a value is the default, whatever type it is written in; 0 is as good as empty."""
    if isinstance(default, bool):
        return flag_of(value) == default
    if number_of(default) is not None or number_of(value) is not None:
        return number_of(value) == (number_of(default) or 0)
    return str(value).strip() == str(default)


def literal_of(raw: Any) -> Any:
    """A list, table or pair that was written as text, read; other values as they are."""
    if not isinstance(raw, str) or not raw.strip().startswith(("[", "(", "{")):
        return raw
    for read in (json.loads, ast.literal_eval):
        try:
            return read(raw)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return raw


class Intake:
    """The keys still to be dealt with, and what became of the others.

    A rule `pop`s a key; it then counts as taken, unless the rule sets it aside with `ignore`.
    """

    def __init__(self, keys: Mapping[str, Any], source: Source) -> None:
        self.source = source
        self.values: dict[str, Any] = {}
        self.ignored: list[Ignored] = []
        self.problems: list[Problem] = []
        self._given: dict[str, str] = {}
        self._taken: dict[str, str] = {}
        self._left: dict[str, Any] = {}
        for key, raw in sorted(keys.items(), key=lambda entry: entry[0] in ALIASES):  # the right names count more
            self._add(str(key), raw)

    def _add(self, key: str, raw: Any) -> None:
        name, value = ALIASES.get(key, key), cleaned(raw)
        if value is None:
            self.ignored.append(Ignored(key, raw, EMPTY))
        elif name in self._left:
            self.ignored.append(Ignored(key, raw, f"is given as {self._given[name]} too"))
        else:
            self._left[name] = value
            self._given[name] = key

    @property
    def taken(self) -> tuple[str, ...]:
        """The keys, as the file writes them, that have a part in the config."""
        return tuple(self._taken.values())

    @property
    def left(self) -> tuple[str, ...]:
        """The names not dealt with yet."""
        return tuple(self._left)

    def value(self, name: str) -> Any:
        """The value of a key that stays; None where there is none."""
        return self._left.get(name)

    def was_given(self, name: str) -> bool:
        """Whether the file holds the key, dealt with or not."""
        return name in self._given

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def fill(self, name: str, value: Any) -> bool:
        """Add what kohya's tools do where the file says nothing; False where it says something."""
        if name in self._left:
            return False
        self._left[name] = value
        return True

    def unfold(self, key: str, name: str, value: Any) -> None:
        """Add a setting that stands inside the text of another key."""
        if name not in self._left:
            self._left[name], self._given[name] = value, f"{key}: {name}"

    def overrule(self, key: str, name: str, value: Any) -> None:
        """Add a setting that stands inside the text of another key and counts more than the key of its own."""
        if name in self._left:
            self.ignore(name, self._left[name], f"{NOT_NEEDED}: {key} counts more, in kohya's tools too")
        self.unfold(key, name, value)

    def pop(self, name: str) -> Any:
        """The value, None where there is none."""
        if name not in self._left:
            return None
        if name in self._given:
            self._taken[name] = self._given[name]
        return self._left.pop(name)

    def pop_number(self, name: str) -> float | None:
        """The value as a number; what is none is set aside."""
        raw = self.pop(name)
        number = number_of(raw)
        if raw is not None and number is None:
            self.ignore(name, raw, f"cannot be used: {raw!r} is not a number")
        return number

    def pop_flag(self, name: str) -> bool:
        """Whether the value says "on"."""
        return flag_of(self.pop(name))

    def ignore(self, name: str, value: Any, reason: str) -> None:
        """Set a key aside; one that was filled in and not given is no loss."""
        self._left.pop(name, None)
        self._taken.pop(name, None)
        if name in self._given:
            self.ignored.append(Ignored(self._given[name], value, reason))

    def ignore_part(self, name: str, part: str, value: Any, reason: str) -> None:
        """Set aside a part of a key's text; the rest of it may count."""
        self.ignored.append(Ignored(f"{self._given.get(name, name)}: {part}", value, reason))

    def warn(self, where: str, message: str) -> None:
        """Something of the file is trained in another way here."""
        self.problems.append(Problem("warning", where, message))

    def hint(self, where: str, message: str) -> None:
        """Something of the file was understood in a way that the user may want to know."""
        self.problems.append(Problem("hint", where, message))

    def put(self, parameter: Parameter, name: str, raw: Any) -> None:
        """Set a parameter as its declaration reads the value; what it refuses is set aside with the reason."""
        try:
            self.values[parameter.name] = parse_value(parameter, _suited(parameter, raw))
        except ValueError as reason:
            is_off = number_of(raw) == 0 and parameter.kind is not bool
            self.ignore(name, raw, ZERO if is_off else f"cannot be used: {str(reason).rstrip('.')}")


def _suited(parameter: Parameter, raw: Any) -> Any:
    """`raw` with the spellings of other programs made ours."""
    if parameter.kind is bool and number_of(raw) is not None:
        return bool(number_of(raw))
    if parameter.choices and isinstance(raw, str):
        return choice_of(parameter, raw) or raw
    return raw


def choice_of(parameter: Parameter, raw: str) -> str:
    """The choice that is meant, whatever the case, blanks and underscores; "" when there is none."""
    plain = _plain(raw)
    return next((choice for choice in parameter.choices if _plain(choice) == plain), "")


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).lower()
