"""What a restart has interrupted: the run that was active then, and the queue behind it. Does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.events import ACTIVE_STATES
from lib_lora_train.core.wording import count
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.past_runs import read_run


@dataclass(frozen=True)
class Interrupted:
    """The run that can continue ("": none), the last step that it has kept, and how many queued runs wait."""

    run: str
    step: int
    total_steps: int
    queued: int

    @property
    def sentence(self) -> str:
        """What was interrupted, "" if nothing was."""
        run = ""
        if self.run:
            where = f"after step {self.step} of {self.total_steps}" if self.step else "before its first saved step"
            run = f"{self.run} was interrupted {where}."
        queue = f"{count(self.queued, 'queued run has', 'queued runs have')} not started."
        return " ".join(part for part in (run, queue if self.queued else "") if part)


def find_interrupted(home: Path, queued: int) -> Interrupted:
    """What continues if the user wants that: the run in `home` that wrote its log last, unless it has an ending."""
    logs = [RunFolder(path).log for path in home.glob("*/")]
    newest = max((log for log in logs if log.is_file()), key=lambda log: log.stat().st_mtime, default=None)
    if newest is not None:
        run = read_run(RunFolder(newest.parent))
        if run["state"] in ACTIVE_STATES and (run["can_resume"] or run["can_begin_again"]):
            return Interrupted(run["run"], run["step"], run["total_steps"], queued)
    return Interrupted("", 0, 0, queued)
