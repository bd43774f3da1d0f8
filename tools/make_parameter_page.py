"""Writes docs/parameters.md from the declarations in `lib_lora_train/config/settings/`.

python -m tools.make_parameter_page
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from lib_lora_train.cli.flags import GROUPS, default_text
from lib_lora_train.config.parameters import Parameter, parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "parameters.md"

_HEAD = """# Parameters

<!-- Made by tools/make_parameter_page.py from lib_lora_train/config/settings/. Do not edit. -->

All settings of a run. They have the same names in the web page, in TOML files and on the command line (`rank` is
`--rank`, `learning_rate` is `--learning-rate`). *Tier* says when you need a setting: **essential** for every run,
**beginner** soon, advanced only for a reason. *kohya* is the name of the same setting in sd-scripts.
"""
_CONCEPT = """## One concept

A run trains one or more concepts. In TOML each is a `[[concepts]]` table. On the command line the same names are flags
(`--folder`, `--trigger`) for a run with a single concept.
"""
_TYPES = {int: "whole number", float: "number", bool: "on or off", str: "text", tuple: "list of texts"}


def parameter_page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD, _CONCEPT, _table(parameters_of(Concept))]
    for key, title in GROUPS.items():
        parts += [f"## {title.capitalize()}\n", _table(p for p in parameters_of(TrainConfig) if p.group == key)]
    return "\n".join(parts)


def _table(parameters: Iterable[Parameter]) -> str:
    rows = ["| setting | what it does | default | values | tier | kohya |", "|---|---|---|---|---|---|"]
    return "\n".join([*rows, *(_row(parameter) for parameter in parameters)]) + "\n"


def _row(parameter: Parameter) -> str:
    tier = parameter.tier if parameter.tier == "advanced" else f"**{parameter.tier}**"
    kohya = f"`{parameter.kohya}`" if parameter.kohya else ""
    cells = [f"`{parameter.name}`", parameter.help, default_text(parameter), values_text(parameter), tier, kohya]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def values_text(parameter: Parameter) -> str:
    """Choices, range or type: `1…256 px`, `text`."""
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if parameter.low is None or parameter.high is None:
        return _TYPES[parameter.kind]
    unit = f" {parameter.unit}" if parameter.unit else ""
    return f"{_number(parameter.low)}…{_number(parameter.high)}{unit}"


def _number(value: float) -> str:
    """`10000000.0` → `10 million`, `2.0**53` → `2^53`, whole numbers without a decimal point."""
    if value > 2**20 and math.log2(value).is_integer():
        return f"2^{int(math.log2(value))}"
    if value >= 1e6 and value % 1e6 == 0:
        return f"{value / 1e6:g} million"
    return f"{int(value)}" if value == int(value) else f"{value:g}"


def main() -> None:
    """Write the page to docs/."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(parameter_page(), encoding="utf-8", newline="\n")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
