"""The advice of a past run in the Results panel: which epoch to use and at which strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import Event, PhaseStarted, StrengthTested
from lib_lora_train.core.phases import PHASE_TITLES
from lib_lora_train.formats.lora_card import recommend
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import newest_advice, read_loras
from lib_lora_train.runs.records.past_config import past_named_word
from lib_lora_train.web.grids import FolderOf
from lib_lora_train.web.measuring import measure_in
from lib_lora_train.web.task_session import TaskSession

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import Runner


class AdviceSession(TaskSession):
    """Finds the best epoch of one run at a time, and writes it to the card of its file.

    `stop` ends the search after the current sampling step; what was drawn is kept.
    """

    def __init__(self, runner: Runner, folder_of: FolderOf) -> None:
        super().__init__("strength test")
        self._runner = runner
        self._folder_of = folder_of

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "advice-start": self.start,
            "advice-status": self.status,
            "advice-stop": self.stop,
            "advice-card": self.write_card,
        }

    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Start the strength test of a run, or continue it; the status. HostError while a training is running."""
        folder = self._folder_of(values)
        if self._runner.active_run:
            raise HostError("A training is running. Test the strengths when it has ended.")
        self.task.start(lambda: self._work(folder))
        return self.status({})

    def write_card(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write the advice into the card of the epoch's LoRA file; the `name` of the file."""
        folder = self._folder_of(values)
        advice = read_advice(folder)
        files = {file.epoch: file.path for file in read_loras(folder) if not file.is_missing}
        if advice is None or advice["epoch"] not in files:
            raise HostError(f"{folder.root.name} has no file of a recommended epoch. Find the best epoch first.")
        path = files[advice["epoch"]]
        image = folder.strength_sample(advice["epoch"], advice["strength"], 1)
        preview = image if image.is_file() else folder.sample(advice["epoch"], 1)
        is_embedding, reasons = bool(past_named_word(folder)), " ".join(advice["reasons"])
        recommend(path, strength=advice["strength"], reasons=reasons, preview=preview, is_embedding=is_embedding)
        self._runner.host.refresh_loras()
        return {"name": path.stem}

    # --- the thread ------------------------------------------------------------------------------
    def _work(self, folder: RunFolder) -> None:
        """Test the strengths; the trials and the advice go to the log of the run."""
        from lib_lora_train.runs.measures.advice import advise_past_run  # loads PyTorch

        def show(event: Event) -> None:
            if isinstance(event, PhaseStarted):
                self.task.start_phase(PHASE_TITLES[event.phase], 0)
            elif isinstance(event, StrengthTested):
                self.task.start_phase(f"Epoch {event.epoch} at strength {event.strength:g} is measured", 0)

        keep = partial(self._runner.note, folder.root.name)
        measure_in(self.task, lambda control: advise_past_run(folder, self._runner.host, control), show, keep)


def read_advice(folder: RunFolder) -> Mapping[str, Any] | None:
    """The newest advice in the log of a run; None if there is none, or if the run was trained on after it."""
    return newest_advice(read_log(folder.log))
