"""The images of a run by their losses: in Results and over HTTP, measured on request, and left out of the form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import DataError, HostError
from lib_lora_train.core.events import Event
from lib_lora_train.core.tag_patterns import make_path_matcher
from lib_lora_train.runs.measures.image_list import image_values, read_images
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import newest_lora
from lib_lora_train.web.form import Form, form_values, with_values
from lib_lora_train.web.form_changes import Change
from lib_lora_train.web.grids import FolderOf
from lib_lora_train.web.image_tokens import ImageTokens
from lib_lora_train.web.measuring import measure_in, progress_in
from lib_lora_train.web.task_session import TaskSession

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import Runner

_LEFT_OUT = "leave_out_images"
_SHOWN = 200  # images that the page gets
_LABELS = {"latents": "images encoded", "evaluate": "losses measured"}


class ImageLossSession(TaskSession):
    """Lists the images of past runs, and measures those of one run at a time; after `stop`, nothing is kept.

    `stage` holds a change of the form until the page applies it.
    """

    def __init__(
        self, runner: Runner, image_tokens: ImageTokens, folder_of: FolderOf, stage: Callable[[Change], None]
    ) -> None:
        super().__init__("image measurement")
        self._runner = runner
        self._image_tokens = image_tokens
        self._folder_of = folder_of
        self._stage = stage
        self._run = ""

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]]:
        """The actions that the page can request, by name."""
        return {
            "image-losses-show": self.show,
            "image-losses-list": self.list_images,
            "image-losses-start": self.start,
            "image-losses-status": self.status,
            "image-losses-stop": self.stop,
            "image-losses-leave-out": self.leave_out,
        }

    # --- showing -------------------------------------------------------------------------------
    def list_images(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The images of a run, those that stand out most first, and after which epoch they were measured.

        Without any, `images` is empty.
        """
        found = read_images(self._folder_of(values))
        return {"epoch": found.epoch if found else 0, "images": image_values(found) if found else []}

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The first images of `list_images`, with tokens for those that still exist; whether they can be measured now.

        `total` and `standing_out` are numbers of all images.
        """
        folder = self._folder_of(values)
        listed = self.list_images(values)
        shown = listed["images"][:_SHOWN]
        for image in shown:
            image["token"] = self._token(image["path"])
            image["nearest"] = [{**one, "token": self._token(one["path"])} for one in image["nearest"]]
        return {
            "epoch": listed["epoch"],
            "images": shown,
            "total": len(listed["images"]),
            "standing_out": sum(image["stands_out"] for image in listed["images"]),
            "can_measure": newest_lora(folder) is not None,
        }

    def _token(self, path: str) -> str:
        """ "" for an image that is gone or that the page cannot show."""
        try:
            return self._image_tokens.publish([Path(path)])[0] if Path(path).is_file() else ""
        except ValueError:
            return ""

    # --- measuring -----------------------------------------------------------------------------
    def start(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Measure every image of the run; the status. HostError while it is training, or another model would load."""
        from lib_lora_train.runs.measures.image_losses import last_file
        from lib_lora_train.runs.records.past_config import read_past_config

        folder = self._folder_of(values)
        run, active = folder.root.name, self._runner.active_run
        if active == run:
            raise HostError("This run is still training. Measure its images when it has ended.")
        last_file(folder)
        if active and not self._runner.host.run_target(read_past_config(folder)).is_loaded:
            raise HostError(f"{active} is training with another model. Measure these images when it has ended.")
        self.task.start(lambda: self._measure(folder))
        self._run = run
        return self.status({})

    def status(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The progress, and the run that is measured."""
        return {**self.task.status(), "run": self._run}

    def _measure(self, folder: RunFolder) -> None:
        from lib_lora_train.runs.measures.image_losses import measure_past_run

        def work(control: Control) -> Iterator[Event]:
            return measure_past_run(folder, self._runner.host, control)

        measure_in(self.task, work, progress_in(self.task, _LABELS), partial(self._runner.note, folder.root.name))

    # --- leaving out ---------------------------------------------------------------------------
    def leave_out(self, values: Mapping[str, Any]) -> None:
        """Stage an image of the run for `leave_out_images` of the form; DataError for one that it does not have."""
        found = read_images(self._folder_of(values))
        path = str(values.get("path") or "")
        if found is None or path not in found.captions:
            raise DataError("This image does not belong to the run. Open the run again.")
        pattern = shortest_pattern(path, list(found.captions))

        def change(form: Form) -> tuple[dict[str, Any], str]:
            before = str(form_values(form).get(_LEFT_OUT) or "")
            if any(make_path_matcher(one)(path) for one in before.splitlines() if one.strip()):
                return dict(form), f"{pattern} is left out already."
            left_out = "\n".join([*filter(None, [before.rstrip()]), pattern])
            return with_values(form, {_LEFT_OUT: tuple(left_out.splitlines())}), f"The next run leaves {pattern} out."

        self._stage(change)


def shortest_pattern(path: str, paths: list[str]) -> str:
    """The end of the path, from its folder on, that fits no other one: `10_zok/012.png`.

    The name alone would also leave out the regularisation image of that name.
    """
    parts = PurePath(path.replace("\\", "/")).parts
    for start in range(len(parts) - 2, 0, -1):
        pattern = "/".join(parts[start:])
        if sum(map(make_path_matcher(pattern), paths)) <= 1:
            return pattern
    return path
