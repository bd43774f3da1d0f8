"""All settings of a training run.

They are declared in `settings/`, one file per group. `read_config` makes a `TrainConfig` from plain values (TOML, form,
JSON) and reports all invalid values together; `validation/` checks combinations.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib_lora_train.config.parameters import read_values
from lib_lora_train.config.settings.captions import CaptionSettings
from lib_lora_train.config.settings.concept import Concept
from lib_lora_train.config.settings.dataset import DataSettings
from lib_lora_train.config.settings.method import MethodSettings
from lib_lora_train.config.settings.model import ModelSettings
from lib_lora_train.config.settings.network import NetworkSettings
from lib_lora_train.config.settings.noise import NoiseSettings
from lib_lora_train.config.settings.optimizer import OptimizerSettings
from lib_lora_train.config.settings.output import OutputSettings
from lib_lora_train.config.settings.samples import SampleSettings
from lib_lora_train.config.settings.training import TrainingSettings
from lib_lora_train.core.errors import Problem

__all__ = [
    "CONFIG_KEY",
    "Concept",
    "TrainConfig",
    "config_values",
    "duration_in_steps",
    "parse_concept_place",
    "read_config",
]

CONFIG_KEY = "lora_train_config"
"""The key of the settings in the metadata of LoRA files."""


@dataclass(frozen=True)
class TrainConfig(
    SampleSettings,
    OutputSettings,
    NetworkSettings,
    MethodSettings,
    NoiseSettings,
    OptimizerSettings,
    TrainingSettings,
    CaptionSettings,
    DataSettings,
    ModelSettings,
):
    """The settings of one run: every field but `concepts` is declared with `param()`.

    A dataclass collects its fields from the last base to the first, so that forms and files begin with the model.
    """

    concepts: tuple[Concept, ...] = ()

    @property
    def resolution_size(self) -> tuple[int, int]:
        """Width and height of the training resolution, in px."""
        return self.resolution, self.resolution if self.resolution_height is None else self.resolution_height

    @property
    def resolution_side(self) -> int:
        """The side of the square with the area of the training resolution, rounded, in px."""
        width, height = self.resolution_size
        return width if width == height else round(math.sqrt(width * height))

    @property
    def effective_alpha(self) -> float:
        """`alpha`, or the rank if it is empty."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def effective_unet_lr(self) -> float:
        """The UNet's learning rate; the general one if it is not set."""
        return self.learning_rate if self.unet_lr is None else self.unet_lr

    @property
    def effective_text_encoder_lr(self) -> float:
        """The (first) text encoder's learning rate; the general one if it is not set."""
        return self.learning_rate if self.text_encoder_lr is None else self.text_encoder_lr

    @property
    def effective_conv_alpha(self) -> float | None:
        """`conv_alpha`, or `conv_rank` if only that is set; None if convolutions are like all other layers."""
        if self.conv_alpha is None and self.conv_rank is not None:
            return float(self.conv_rank)
        return self.conv_alpha

    @property
    def effective_sampler(self) -> str:
        """The webui's sampler if the settings name one, else ours."""
        return self.webui_sampler or self.sample_sampler

    @property
    def triggers(self) -> tuple[str, ...]:
        """The trigger words of all concepts but regularisation."""
        return tuple(c.trigger for c in self.concepts if c.trigger and not c.is_regularisation)

    def replace(self, **values: Any) -> TrainConfig:
        """A copy with some values changed."""
        return dataclasses.replace(self, **values)

    def replace_at(self, values: Mapping[str, Any]) -> TrainConfig:
        """A copy with values changed by their places: `epochs`, or `concepts[1].trigger`."""
        concepts = list(self.concepts)
        own = {}
        for place, value in values.items():
            concept = parse_concept_place(place)
            if concept is None:
                own[place] = value
            else:
                number, name = concept
                concepts[number - 1] = dataclasses.replace(concepts[number - 1], **{name: value})
        return dataclasses.replace(self, concepts=tuple(concepts), **own)


def parse_concept_place(place: str) -> tuple[int, str] | None:
    """(number from 1, setting) of a place such as `concepts[1].trigger`; None for all others."""
    match = re.fullmatch(r"concepts\[(\d+)\]\.(\w+)", place)
    return (int(match[1]), match[2]) if match else None


def read_config(values: Mapping[str, Any]) -> tuple[TrainConfig, tuple[Problem, ...]]:
    """The config from plain values, and all their problems.

    `values` maps setting names to values; `concepts` is a list of tables with the settings of `Concept`.
    Invalid values are replaced by the defaults; callers must stop if a problem is an error.
    """
    plain = {name: value for name, value in values.items() if name != "concepts"}
    parsed, problems = read_values(TrainConfig, plain)
    concepts = []
    tables = values.get("concepts", ())
    if not isinstance(tables, (list, tuple)):
        problems.append(
            Problem("error", "concepts", "is not a list of tables. Write a [[concepts]] table for each folder.")
        )
        tables = ()
    for number, table in enumerate(tables, start=1):
        if not isinstance(table, Mapping):
            problems.append(Problem("error", f"concepts[{number}]", "is not a table."))
            continue
        fields, found = read_values(Concept, table)
        concepts.append(Concept(**fields))
        problems += [Problem(p.level, f"concepts[{number}].{p.where}", p.message) for p in found]
    return TrainConfig(concepts=tuple(concepts), **parsed), tuple(problems)


def duration_in_steps(duration: float, total_steps: int) -> int:
    """A duration in whole steps, rounded down: below 1 it is a share of `total_steps`, from 1 on a number of steps."""
    if duration >= 1:
        return int(duration)
    return int(round(duration * total_steps, 6))  # in binary, 0.29 × 100 is slightly less than 29


def config_values(config: TrainConfig, *, only_changed: bool = False) -> dict[str, Any]:
    """The inverse of `read_config`: JSON-ready values, None for "not set"."""
    values = _plain(config, only_changed)
    if config.concepts:
        values["concepts"] = [_plain(concept, True) for concept in config.concepts]
    return values


def _plain(declared: TrainConfig | Concept, only_changed: bool) -> dict[str, Any]:
    values = {}
    for field in dataclasses.fields(declared):
        value = getattr(declared, field.name)
        if "param" in field.metadata and not (only_changed and value == field.default):
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values
