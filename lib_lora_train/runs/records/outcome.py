"""What a run was trained with and what came of it, in one row, as programs that compare runs want it.

Does not import PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.wording import value_text
from lib_lora_train.formats.toml import PATH_SETTINGS
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.run_results import read_result
from lib_lora_train.runs.sweeps.comparison import compare, flat_settings
from lib_lora_train.runs.sweeps.sweep import FIXED
from lib_lora_train.runs.sweeps.sweep_record import read_sweep_of

_UNSHOWN = frozenset((*FIXED, *PATH_SETTINGS, "concepts", "comment"))


@dataclass(frozen=True)
class Outcome:
    """Settings by place, and what was measured after the best epoch, which is named by its number."""

    settings: Mapping[str, str | float | bool]
    measures: Mapping[str, float]
    epoch: int


def read_outcome(folder: RunFolder) -> Outcome | None:
    """The outcome of a run as far as it has come; None without a finished epoch.

    The settings are those that its sweep varies, or, outside a sweep, those that differ from the defaults.
    """
    if not folder.log.is_file():
        return None
    row = compare([read_result(folder)]).rows[0]
    if not row.choice.epoch:
        return None
    values = flat_settings(row.result.config)
    sweep = read_sweep_of(folder)
    places = [place for place in sweep.places if place in values] if sweep else _changed(row.result.config)
    measures = {"best/epoch": float(row.choice.epoch), **{f"best/{name}": value for name, value in row.best.items()}}
    return Outcome({place: _plain(values[place]) for place in places}, measures, row.choice.epoch)


def _changed(config: TrainConfig) -> list[str]:
    """The settings that differ from the defaults, without names, paths and prompts."""
    defaults = flat_settings(TrainConfig())
    return [
        name
        for name, value in flat_settings(config).items()
        if name in defaults and value != defaults[name] and name not in _UNSHOWN
    ]


def _plain(value: Any) -> str | float | bool:
    return value if isinstance(value, (bool, int, float, str)) else value_text(value)
