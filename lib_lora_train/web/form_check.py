"""The result of checking the form: its problems with their fixes, and the plan if the dataset was scanned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import has_errors
from lib_lora_train.core.errors import Problem
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.scan import Dataset
from lib_lora_train.runs.checks.checkpoint_check import NO_CHECKPOINT, CheckpointCheck
from lib_lora_train.runs.estimates.requirements import Requirements
from lib_lora_train.web.quick_fixes import Fix

_QUICK_SCAN_SECONDS = 2.0


@dataclass(frozen=True)
class ScannedDataset:
    """A dataset that was scanned. `number` counts the scans, so that the page recognises a new one."""

    number: int
    concepts: tuple[Concept, ...]
    caption_extension: str
    dataset: Dataset
    seconds: float = 0.0

    def is_of(self, config: TrainConfig) -> bool:
        """Whether the dataset was scanned with the concepts and captions of `config`."""
        return (self.concepts, self.caption_extension) == (config.concepts, config.caption_extension)

    def needs_quick_rescan(self, config: TrainConfig) -> bool:
        """Whether only settings of the same folders have changed, and scanning them was quick."""
        has_same_folders = [c.folder for c in self.concepts] == [c.folder for c in config.concepts]
        return has_same_folders and not self.is_of(config) and self.seconds < _QUICK_SCAN_SECONDS


@dataclass(frozen=True)
class ChangedSettings:
    """The presets in the order they were applied, and the settings that differ from them now.

    `values`: name → the value there, and the value now, as texts.
    """

    applied: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)


@dataclass(frozen=True)
class FormCheck:
    """`plan` and `requirements` are None until the dataset is scanned."""

    config: TrainConfig
    problems: tuple[Problem, ...]
    plan: Plan | None
    requirements: Requirements | None = None
    fixes: tuple[Fix, ...] = ()
    changed: ChangedSettings = ChangedSettings()
    model: CheckpointCheck = NO_CHECKPOINT
    scan_errors: tuple[Problem, ...] = ()
    """Why the latest scan of these folders failed; () if it did not."""

    @property
    def plan_problems(self) -> tuple[Problem, ...]:
        """The warnings of the plan, then the problems of its memory and time requirements."""
        return (*(self.plan.warnings if self.plan else ()), *(self.requirements.problems if self.requirements else ()))

    @property
    def can_start(self) -> bool:
        """True when no problem is an error."""
        return not has_errors(self.problems)
