"""The errors a user can meet, as one tree.

LoraTrainError
├── ConfigError      settings that are out of range or contradict each other (all of them at once)
│   ├── SettingsFileError    a settings file that cannot be read, or is another kind of file
│   └── ResumeRefusedError   an interrupted run whose settings or images have changed since
├── DataError        the dataset folders, images or captions
├── ModelError       a checkpoint or tokenizer that cannot be used
│   ├── OtherModelError      a run would continue on another model than the one it was started on
│   └── VaeError         a separate VAE that cannot be used
├── AdapterError     a LoRA file that cannot be used, or a layer that cannot be adapted
├── HostError        the webui is in a state that does not allow the request
│   ├── ModelUnavailableError   the run's model is not loaded right now; the run waits for it
│   │   └── OtherModelLoadedError   another one is, on which the run may continue if the user wants that
│   ├── SessionUnavailableError   the trainer itself could not be started in this webui
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
from pathlib import Path
from typing import Any, Literal, get_args

from lib_lora_train.core.wording import count, located, without_name

Level = Literal["error", "warning", "hint"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""From the most to the least serious."""
Offer = Literal["", "continue-from", "other-model"]
"""What the page offers beside an error: a new run from the last LoRA file, or training on another model."""


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", without_name(self.message, self.where))

    def __str__(self) -> str:
        return located(self.where, self.message)


class LoraTrainError(Exception):
    """Any error that a user can fix; its text is a complete sentence."""

    offer: Offer = ""


class ConfigError(LoraTrainError):
    """Invalid settings; `problems` holds all of them, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self._text())

    def _text(self) -> str:
        return f"{self._title()}:\n" + "\n".join(f"  - {problem}" for problem in self.problems)

    def _title(self) -> str:
        return f"{count(len(self.problems), 'setting')} cannot be used"


class SettingsFileError(ConfigError):
    """A settings file cannot be used as a whole; its only problem is at the file's path."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__([Problem("error", str(path), message)])

    def _text(self) -> str:
        (problem,) = self.problems
        return f"{problem.where} {problem.message}"


class ResumeRefusedError(ConfigError):
    """The settings or images of a run have changed since it was interrupted."""

    offer = "continue-from"

    def _title(self) -> str:
        return "This run cannot be resumed as it was"


class DataError(LoraTrainError):
    """The dataset cannot be read or is empty."""


class ModelError(LoraTrainError):
    """A checkpoint, VAE or tokenizer is missing, damaged or of an unsupported kind."""


class OtherModelError(ModelError):
    """A run would continue on another model than the one it was started on."""

    offer = "other-model"


class VaeError(ModelError):
    """The VAE that replaces the checkpoint's own cannot be used."""


class AdapterError(LoraTrainError):
    """A LoRA file is damaged or does not fit the model."""


class HostError(LoraTrainError):
    """The webui is in a state that does not allow the request."""


class ModelUnavailableError(HostError):
    """The run's model is not loaded: another one is, or none. It may come back."""


class OtherModelLoadedError(ModelUnavailableError):
    """Another model is loaded than the run was started on; the user may accept it."""

    offer = "other-model"


class SessionUnavailableError(HostError):
    """The trainer could not be started in this webui, for a reason that only another start can change."""


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
