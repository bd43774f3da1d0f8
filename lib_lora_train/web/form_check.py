"""What is known of the form as it stands: the dataset looked at, problems with their fixes, the plan."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import Problem
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.scan import Dataset
from lib_lora_train.runs.estimates.requirements import Forecast
from lib_lora_train.web.quick_fixes import Fix


@dataclass(frozen=True)
class ScannedDataset:
    """A dataset that was looked at; `number` counts the looks, so that the page knows a new one."""

    number: int
    concepts: tuple[Concept, ...]
    caption_extension: str
    dataset: Dataset
    seconds: float = 0.0

    def is_of(self, config: TrainConfig) -> bool:
        """Whether looking again would find the same."""
        return (self.concepts, self.caption_extension) == (config.concepts, config.caption_extension)

    def has_folders_of(self, config: TrainConfig) -> bool:
        """Whether the same folders were looked at, with other repeats or words perhaps."""
        return [c.folder for c in self.concepts] == [c.folder for c in config.concepts]


@dataclass(frozen=True)
class Changed:
    """The presets that were applied one after the other, and the parameters that differ from them by now."""

    applied: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked:
    """What is known of the form as it stands: `plan` and `needs` are None until its dataset was looked at."""

    config: TrainConfig
    problems: tuple[Problem, ...]
    plan: Plan | None
    needs: Forecast | None = None
    fixes: tuple[Fix, ...] = ()
    changed: Changed = Changed()

    @property
    def findings(self) -> tuple[Problem, ...]:
        """The plan's, and those of what it needs."""
        return (*(self.plan.warnings if self.plan else ()), *(self.needs.problems if self.needs else ()))

    @property
    def is_usable(self) -> bool:
        """True when nothing stands against starting."""
        return not any(problem.level == "error" for problem in self.problems)
