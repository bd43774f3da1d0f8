"""One declaration per setting, from which everything else is derived.

`param()` declares a dataclass field with its default, help text and limits. `parameters_of` returns the declarations as
`Parameter` records. Widgets, command-line flags, TOML keys, validation, kohya import, file metadata and
`docs/parameters.md` are made from them.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lib_lora_train.core.errors import Problem
from lib_lora_train.core.wording import as_sentence, did_you_mean

Tier = Literal["essential", "beginner", "advanced"]
STEPS_OR_SHARE = "steps or share"
"""Unit of durations: below 1 a share of the run, which can be written as 10%; from 1 on a number of steps."""

Group = Literal["model", "data", "captions", "training", "network", "noise", "output", "samples"]


@dataclass(frozen=True)
class Parameter:
    """The declaration of one setting.

    `kind` is the type of its value; if `optional`, None (written "" or "auto") is allowed too. `kohya` is the
    sd-scripts argument with the same meaning, "" if there is none.
    """

    name: str
    kind: type
    optional: bool
    default: Any
    help: str
    group: Group
    tier: Tier
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    kohya: str
    unit: str

    @property
    def label(self) -> str:
        """The name in words: `unet_lr` → `Unet lr`."""
        return self.name.replace("_", " ").capitalize()

    def includes(self, value: Any) -> bool:
        """Whether the value is within the range; not a number is not."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def param(
    default: Any,
    help: str,
    *,
    tier: Tier = "advanced",
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[str] = (),
    kohya: str = "",
    unit: str = "",
) -> Any:
    """A dataclass field with its declaration as metadata.

    `help` says what the setting does, which values are usual and what goes wrong otherwise. Its first sentence is shown
    below the widget. `low` and `high` are inclusive.
    """
    declared = {
        "help": help,
        "tier": tier,
        "low": low,
        "high": high,
        "choices": tuple(choices),
        "kohya": kohya,
        "unit": unit,
    }
    return dataclasses.field(default=default, metadata={"param": declared})


@functools.cache
def parameters_of(config_class: type) -> tuple[Parameter, ...]:
    """The settings declared in a config dataclass, in order; their group is the `GROUP` of the class that has them."""
    hints = typing.get_type_hints(config_class)
    found = []
    for field in dataclasses.fields(config_class):
        if "param" not in field.metadata:
            continue
        kind, optional = _unwrap(hints[field.name])
        found.append(
            Parameter(
                name=field.name,
                kind=kind,
                optional=optional,
                default=field.default,
                group=_group(config_class, field.name),
                **field.metadata["param"],
            )
        )
    return tuple(found)


def _group(config_class: type, name: str) -> Group:
    """Of the class in which the field is declared."""
    declaring = next(one for one in config_class.__mro__ if name in inspect.get_annotations(one))
    group: Group = declaring.GROUP  # type: ignore[attr-defined]
    return group


def _unwrap(hint: Any) -> tuple[type, bool]:
    """`int | None` → (int, True); `tuple[str, ...]` → (tuple, False)."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        (inner,) = (a for a in arguments if a is not type(None))
        return inner, True
    return typing.get_origin(hint) or hint, False


def parse_value(parameter: Parameter, raw: Any) -> Any:
    """`raw` (from TOML, a widget, a flag or a JSON file) converted to the setting's type and checked.

    Numbers can be written as text, and "" means "not set". ValueError with a sentence for the user.
    """
    if raw is None or (isinstance(raw, str) and raw.strip().lower() in ("", "auto") and parameter.kind is not str):
        if parameter.optional:
            return None
        if parameter.kind is tuple:
            return ()
        raise ValueError(f"needs a value ({_describe(parameter)})")
    try:
        value = _PARSERS[parameter.kind](_percent_to_share(raw) if parameter.unit == STEPS_OR_SHARE else raw)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{raw!r} is not {_describe(parameter)}") from None
    _check_range(parameter, value)
    return value


def _check_range(parameter: Parameter, value: Any) -> None:
    if parameter.choices and value not in parameter.choices:
        hint = did_you_mean(str(value), parameter.choices)
        raise ValueError(f"{value!r} is not one of {', '.join(parameter.choices)}.{hint}")
    if not parameter.includes(value):
        raise ValueError(f"{value} is outside {_range(parameter)}")


def _range(parameter: Parameter) -> str:
    low = "−∞" if parameter.low is None else f"{parameter.low:g}"
    high = "∞" if parameter.high is None else f"{parameter.high:g}"
    return f"{low}…{high}"


def _describe(parameter: Parameter) -> str:
    if parameter.unit == STEPS_OR_SHARE:
        return "a number of steps, or a share of the run such as 0.1 or 10%, below 100%"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", tuple: "a list of texts"}
    return names[parameter.kind]


def _to_int(raw: Any) -> int:
    if isinstance(raw, bool):
        raise ValueError
    number = float(raw)
    if number != int(number):
        raise ValueError
    return int(raw) if isinstance(raw, int) else int(number)


def _to_float(raw: Any) -> float:
    if isinstance(raw, bool):
        raise ValueError
    return float(raw)


def _to_bool(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    text = str(raw).strip().lower()
    if text not in words:
        raise ValueError
    return words[text]


def _percent_to_share(raw: Any) -> Any:
    """ "10%" → 0.1. 100% and more are refused, as 1 would mean one step."""
    if not isinstance(raw, str) or not raw.strip().endswith("%"):
        return raw
    share = float(raw.strip()[:-1]) / 100
    if not 0 <= share < 1:
        raise ValueError
    return share


def _to_text(raw: Any) -> str:
    if isinstance(raw, (dict, list, tuple, bool)):
        raise TypeError
    return str(raw).strip()


def _to_texts(raw: Any) -> tuple[str, ...]:
    """A tuple of non-empty texts, from a list or from the lines of a text."""
    if isinstance(raw, str):
        return tuple(line.strip() for line in raw.splitlines() if line.strip())
    if not isinstance(raw, (list, tuple)):
        raise TypeError
    return tuple(str(line).strip() for line in raw if str(line).strip())


_PARSERS: dict[type, Any] = {int: _to_int, float: _to_float, bool: _to_bool, str: _to_text, tuple: _to_texts}


def read_values(config_class: type, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The parsed values, and a problem for every invalid value or unknown name."""
    known = {parameter.name: parameter for parameter in parameters_of(config_class)}
    parsed: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, raw in values.items():
        if name not in known:
            problems.append(Problem("error", name, _explain_unknown(name, known)))
            continue
        try:
            parsed[name] = parse_value(known[name], raw)
        except ValueError as reason:
            problems.append(Problem("error", name, as_sentence(str(reason))))
    return parsed, problems


def _explain_unknown(name: str, known: Mapping[str, Parameter]) -> str:
    by_kohya = {p.kohya: p.name for p in known.values() if p.kohya}
    if name in by_kohya:
        return f"is called {by_kohya[name]!r} here."
    return f"is not a setting.{did_you_mean(name, known)}"
