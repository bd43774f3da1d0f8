"""The state of an import of OneTrainer's settings: nested tables by dotted names, and what became of each key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lib_lora_train.config.parameters import Parameter, parameters_of, parse_value
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import Problem
from lib_lora_train.formats.kohya.import_state import IgnoredKey, invalid, parse_number
from lib_lora_train.formats.onetrainer import keys

PARAMETERS = {parameter.name: parameter for parameter in parameters_of(TrainConfig)}


class Reading:
    """The keys that remain to be read, our values so far, and what was ignored."""

    def __init__(self, values: Mapping[str, Any], parameters: Mapping[str, Parameter] = PARAMETERS) -> None:
        self.values: dict[str, Any] = {}
        self.ignored: list[IgnoredKey] = []
        self.problems: list[Problem] = []
        self.used: list[str] = []
        self._parameters = parameters
        self._remaining = dict(_flat(values))

    def pop(self, name: str, default: Any = None) -> Any:
        """The value of a key, OneTrainer's default if the file does not have it; it counts as used."""
        if name not in self._remaining:
            return default
        self.used.append(name)
        value = self._remaining.pop(name)
        return default if value is None else value

    def is_null(self, name: str) -> bool:
        """Whether the file sets the key to nothing, where OneTrainer's default is something."""
        return name in self._remaining and self._remaining[name] is None

    def pop_number(self, name: str, default: float) -> float:
        """The value as a number; anything else is ignored with the reason."""
        raw = self.pop(name, default)
        number = parse_number(raw)
        if number is None:
            self.ignore(name, raw, "is not a number")
        return default if number is None else number

    def set(self, ours: str, name: str, value: Any) -> None:
        """Set one of our values; an invalid one is ignored with the reason."""
        try:
            self.values[ours] = parse_value(self._parameters[ours], value)
        except ValueError as reason:
            self.ignore(name, value, invalid(value, reason))

    def ignore(self, name: str, value: Any, reason: str) -> None:
        """Ignore a key with the reason."""
        if name in self.used:
            self.used.remove(name)
        self.ignored.append(IgnoredKey(name, value, reason))

    def warn(self, where: str, message: str) -> None:
        """Report that something in the file is trained differently here."""
        self.problems.append(Problem("warning", where, message))

    def hint(self, where: str, message: str) -> None:
        """Report how something in the file was interpreted."""
        self.problems.append(Problem("hint", where, message))

    def ignore_rest(self) -> None:
        """Ignore the keys that nothing has read, each with its reason."""
        for name, value in self._remaining.items():
            self.ignored.append(IgnoredKey(name, value, keys.why_not_read(name, value)))
        self._remaining.clear()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and name not in ("optimizer_defaults", "concept_stats"):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
