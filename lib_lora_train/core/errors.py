"""The errors a user can meet, as one tree.

LoraTrainError
├── ConfigError      settings that are out of range or contradict each other (all of them at once)
├── DataError        the dataset folders, images or captions
├── ModelError       a checkpoint or tokenizer that cannot be used
│   └── VaeError         a separate VAE that cannot be used
├── AdapterError     a LoRA file that cannot be used, or a layer that cannot be adapted
├── HostError        the webui is in a state that does not allow the request
│   ├── ModelUnavailableError   the run's model is not loaded right now; the run waits for it
│   └── GenerationInterrupted   the user pressed the webui's Interrupt or Skip while it generated for us
├── OutputError      a file that cannot be written: disk full, folder missing, invalid name
└── TrainingError    training itself failed: NaN, out of memory
    ├── MemoryFullError  the graphics card ran out of memory outside a training step, which has its own fallbacks
    └── GateError    the demo finished but did not learn what it must

Every message is one or two sentences for the user: what is wrong, where, and what to do. The page and the log show
it unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Level = Literal["error", "warning", "hint"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""From the most to the least serious."""


@dataclass(frozen=True)
class Problem:
    """A problem with the settings or the dataset.

    `where` names the setting, file or folder, so that the page can mark it; `message` continues it as a sentence.
    `remedy` holds (setting, value) pairs that solve it, for a button on the page.
    """

    level: Level
    where: str
    message: str
    remedy: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class LoraTrainError(Exception):
    """Any error that a user can fix; its text is a complete sentence."""


class ConfigError(LoraTrainError):
    """Invalid settings; `problems` holds all of them, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = "1 setting cannot be used" if count == 1 else f"{count} settings cannot be used"
        super().__init__(f"{title}:\n" + "\n".join(f"  - {problem}" for problem in self.problems))


class DataError(LoraTrainError):
    """The dataset cannot be read or is empty."""


class ModelError(LoraTrainError):
    """A checkpoint, VAE or tokenizer is missing, damaged or of an unsupported kind."""


class VaeError(ModelError):
    """The VAE that replaces the checkpoint's own cannot be used."""


class AdapterError(LoraTrainError):
    """A LoRA file is damaged or does not fit the model."""


class HostError(LoraTrainError):
    """The webui is in a state that does not allow the request."""


class ModelUnavailableError(HostError):
    """The run's model is not loaded: another one is, or none. It may come back."""


class GenerationInterrupted(HostError):
    """The user interrupted an image that the webui was generating for us."""


class OutputError(LoraTrainError):
    """A file could not be written."""


class TrainingError(LoraTrainError):
    """Training cannot continue; the last good state was kept."""


class MemoryFullError(TrainingError):
    """The graphics card ran out of memory outside a training step."""


class GateError(TrainingError):
    """The run finished, but its measured result is below the promised one."""
