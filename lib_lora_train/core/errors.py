"""The errors a user can meet, as one tree.

LoraTrainError
├── ConfigError      settings that contradict each other or are out of range (all of them at once)
├── DataError        the dataset folders, images or captions
├── ModelError       a checkpoint, VAE or tokenizer that cannot be used
├── AdapterError     a LoRA file or a layer that cannot be adapted
├── HostError        the webui around us is in a state that does not allow the request
│   ├── ModelAwayError   the model of a run is not loaded at the moment; the run waits for it
│   └── InterruptedDrawing   the user pressed the webui's Interrupt or Skip while it drew for us
├── OutputError      a file that cannot be written: disk full, folder missing, bad name
└── TrainingError    training itself went wrong: NaN, out of memory
    ├── MemoryFullError  the graphics card's memory is full outside of a step, which has its own remedies
    └── GateError    the demo ended but did not learn what it must

Every message says what is wrong, where, and what to do, in one or two sentences: it is shown
in the page and in the log as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "hint"]


@dataclass(frozen=True)
class Problem:
    """One finding about the settings or the data, with its reason.

    `where` names a parameter, a file or a folder, so that the page can mark the place.
    """

    level: Level
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class LoraTrainError(Exception):
    """Anything that a user can mend; its text is a complete sentence for them."""


class ConfigError(LoraTrainError):
    """Settings that cannot be trained with; `problems` holds every one of them, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        title = "1 setting cannot be used" if count == 1 else f"{count} settings cannot be used"
        super().__init__(f"{title}:\n" + "\n".join(f"  - {problem}" for problem in self.problems))


class DataError(LoraTrainError):
    """The dataset cannot be read or is empty."""


class ModelError(LoraTrainError):
    """A checkpoint, VAE or tokenizer is missing, damaged or of a kind we cannot train."""


class AdapterError(LoraTrainError):
    """A LoRA file is damaged or does not fit the model."""


class HostError(LoraTrainError):
    """The webui is in a state that does not allow the request."""


class ModelAwayError(HostError):
    """Another model is loaded than the one asked for, or none; it may come back."""


class InterruptedDrawing(HostError):
    """The user interrupted what the webui drew for us."""


class OutputError(LoraTrainError):
    """A result could not be written."""


class TrainingError(LoraTrainError):
    """Training cannot go on; the last good state was kept."""


class MemoryFullError(TrainingError):
    """The graphics card's memory is full outside of a training step."""


class GateError(TrainingError):
    """The run finished, but the measured result is below the promised one."""
