"""The report on the tags of a past run: in Results and over HTTP, measured on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import DataError, HostError
from lib_lora_train.core.events import Event
from lib_lora_train.runs.measures.tag_list import read_tags, tag_values
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import newest_lora
from lib_lora_train.runs.records.past_config import require_lora_run
from lib_lora_train.web.grids import FolderOf
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.measuring import measure_in, progress_in
from lib_lora_train.web.task_session import TaskSession

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import Runner

_LABELS = {"samples": "images drawn", "evaluate": "images compared"}


class TagReportSession(TaskSession):
    """Lists the tags of past runs, and measures those of one run at a time; after `stop`, the images drawn are kept."""

    def __init__(self, runner: Runner, image_tokens: ImageTokens, folder_of: FolderOf) -> None:
        super().__init__("tag report")
        self._runner = runner
        self._image_tokens = image_tokens
        self._folder_of = folder_of
        self._run = ""

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """The actions that the page can request, by name."""
        return {
            "tags-show": self.show,
            "tags-list": self.list_tags,
            "tags-images": self.show_images,
            "tags-start": self.start,
            "tags-status": self.status,
            "tags-stop": self.stop,
        }

    # --- showing -------------------------------------------------------------------------------
    def list_tags(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The tags of a run, those that stand out first, and after which epoch they were measured; [] without any."""
        found = read_tags(self._folder_of(values))
        return {"epoch": found.epoch if found else 0, "tags": tag_values(found) if found else []}

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same, and whether they can be measured now."""
        return {**self.list_tags(values), "can_measure": newest_lora(self._folder_of(values)) is not None}

    def show_images(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The images of a `prompt` of the report and of its trigger alone, with the same seeds: two rows of tokens."""
        folder = self._folder_of(values)
        found = read_tags(folder)
        tag = next((one for one in found.tags if one.prompt == str(values.get("prompt"))), None) if found else None
        if found is None or tag is None:
            raise DataError("This tag does not belong to the run. Open the run again.")
        alone = found.alone.get(tag.trigger, tag.trigger)
        return {
            "rows": [
                {"prompt": prompt, "images": self._tokens(folder, found.lora, prompt, len(tag.having))}
                for prompt in (alone, tag.prompt)
            ]
        }

    def _tokens(self, folder: RunFolder, lora: str, prompt: str, count: int) -> list[str]:
        """Of the images that still exist."""
        paths = [folder.tag_image(lora, prompt, number) for number in range(1, count + 1)]
        return list(self._image_tokens.publish(path for path in paths if path.is_file()))

    # --- measuring -----------------------------------------------------------------------------
    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Measure the tags of the run, `tag` too if it is given; the status. HostError while a training is running."""
        folder = self._folder_of(values)
        if self._runner.active_run:
            raise HostError("A training is running. Measure the tags when it has ended.")
        require_lora_run(folder)
        also = [str(values["tag"])] if values.get("tag") else []
        self.task.start(lambda: self._measure(folder, also))
        self._run = folder.root.name
        return self.status({})

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The progress, and the run that is measured."""
        return {**self.task.status(), "run": self._run}

    def _measure(self, folder: RunFolder, also: Sequence[str]) -> None:
        from lib_lora_train.runs.measures.tag_report import measure_tags  # loads PyTorch

        def work(control: Control) -> Iterator[Event]:
            return measure_tags(folder, self._runner.host, control, also)

        measure_in(self.task, work, progress_in(self.task, _LABELS), partial(self._runner.note, folder.root.name))
