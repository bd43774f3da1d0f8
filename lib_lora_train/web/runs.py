"""The Results panel: past runs, what can be done with them, and the queue."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.adapters.files.rename import write_renamed
from lib_lora_train.config.train_config import TrainConfig, config_values, read_config
from lib_lora_train.core.errors import HostError, LoraTrainError, OutputError
from lib_lora_train.core.events import LoraRemoved, LoraWritten
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.lora_tools.new_file import new_file, sidecars
from lib_lora_train.runs.checks.checkpoint_check import MODEL_NOTE
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.history import newest_lora, read_loras
from lib_lora_train.runs.records.interrupted import Interrupted, find_interrupted
from lib_lora_train.runs.records.moved_run import Move, read_move
from lib_lora_train.runs.records.past_runs import past_runs
from lib_lora_train.runs.records.tensorboard import TensorBoardServer
from lib_lora_train.web.advice import read_advice
from lib_lora_train.web.image_tokens import ImageTokens

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import Runner

log = logging.getLogger("lora_train")

RUNS_SHOWN = 30
"""Runs on the first page, and how many “Show older runs” adds."""
_SHOWN_KINDS = ("SampleDrawn", "SampleMatched", "GridDrawn", "EpochDone", "Measured")

_OTHER_MODEL = (
    "The run was started on another model. What it has learnt there may look different on this one, its next files "
    "belong to this model, and it can no longer be compared with itself. Its earlier files stay."
)

StageSettings = Callable[[TrainConfig, str], None]


class RunSession:
    """Actions for the runs in `home`. `stage` holds the settings of a run until the page applies them to its form."""

    def __init__(self, runner: Runner, home: Path, image_tokens: ImageTokens, stage: StageSettings) -> None:
        self._runner = runner
        self._home = home
        self._image_tokens = image_tokens
        self._stage = stage
        self._board = TensorBoardServer(home)
        self._interrupted: Interrupted | None = None

    def actions(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]]:
        """The actions that the page can request, by name."""
        return {
            "runs-list": self.list_runs,
            "runs-show": self.show,
            "runs-settings": self.use_settings,
            "runs-export": self.export,
            "runs-report": self.report,
            "runs-resume": self.resume_run,
            "runs-continue-from": self.continue_from,
            "runs-other-model": self.use_other_model,
            "interrupted-resume": self.resume_interrupted,
            "interrupted-dismiss": self.dismiss,
            "runs-rename": self.rename,
            "runs-preview-delete": self.preview_delete,
            "runs-delete": self.delete,
            "runs-tensorboard": lambda _: {"address": self._board.address()},
            "queue-add-run": self.enqueue,
            "queue-move": self.move,
            "queue-remove": self.remove,
            "queue-start": self.start_queue,
        }

    # --- browsing ------------------------------------------------------------------------------
    def list_runs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The `count` newest runs, one page without it, and how they ended; whether there are older ones."""
        runs = past_runs(self._home, self._runner.active_run)
        shown = list(itertools.islice(runs, max(1, int(values.get("count") or RUNS_SHOWN))))
        return {"runs": shown, "has_older": next(runs, None) is not None, "page_size": RUNS_SHOWN}

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """One run: the settings that differ from the defaults, its LoRA files, images, measurements and grid."""
        folder = self.folder_of(values)
        config, move = self._config(folder), read_move(folder)
        settings = config_values(config, only_changed=True)
        records = list(read_log(folder.log))
        return {
            "run": folder.root.name,
            "model": _model_of(records),
            "settings": {name: value for name, value in settings.items() if name != "concepts"},
            "concepts": settings.get("concepts", []),
            "triggers": [concept.trigger for concept in config.concepts if concept.trigger],
            "files": [
                {"path": str(file.path), "epoch": file.epoch, "step": file.step, "missing": file.is_missing}
                for file in read_loras(folder, records)
            ],
            "epoch_grid": self._old_grid(folder),
            "advice": read_advice(folder),
            "events": [event for record in records if (event := self._shown_event(record, move))],
        }

    def _shown_event(self, record: Mapping[str, Any], move: Move) -> dict[str, Any] | None:
        """A record as the page shows it; None if it does not, or if the image is gone."""
        if record["kind"] not in _SHOWN_KINDS:
            return None
        found = move.record(record)
        if record["kind"] == "SampleMatched":
            return self._shown_copy(found) if found["is_copy"] else None
        if record["kind"] not in ("SampleDrawn", "GridDrawn"):
            return found
        path = Path(found["path"])
        return {**found, "token": self._image_tokens.publish([path])[0]} if path.is_file() else None

    def _shown_copy(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """A sample that is nearly a copy, with tokens for it and the training image; None if one of them is gone."""
        paths = [Path(record["sample"]), Path(record["image"])]
        if not all(path.is_file() for path in paths):
            return None
        sample, image = self._image_tokens.publish(paths)
        return {**record, "token": sample, "image_token": image}

    def _old_grid(self, folder: RunFolder) -> dict[str, Any] | None:
        """The grid of this run as one image, from a version that kept no cells; None if there is none."""
        path = folder.old_epoch_grid
        if not path.is_file():
            return None
        token, time = self._image_tokens.publish([path])[0], path.stat().st_mtime
        return {"token": token, "time": time, "path": str(path)}

    # --- using a run ---------------------------------------------------------------------------
    def use_settings(self, values: Mapping[str, Any]) -> None:
        """Stage the settings of the run for the form."""
        folder = self.folder_of(values)
        self._stage(self._config(folder), folder.root.name)

    def continue_from(self, values: Mapping[str, Any]) -> None:
        """Stage the settings of the run for a new one that begins with what it has learnt."""
        folder = self.folder_of(values)
        lora = newest_lora(folder)
        if lora is None:
            raise HostError(f"{folder.root.name} has no LoRA file to continue from. Start a new run.")
        self._stage(self._config(folder).replace(continue_from=str(lora)), folder.root.name)

    def use_other_model(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Resume the run on the model in use; one that waits for its own model continues on it."""
        run = self.folder_of(values).root.name
        if self._runner.active_run == run:
            self._runner.accept_any_model()
            return {"run": run}
        return {"run": self._runner.resume_run(run, any_model=True)}

    # --- after a restart -----------------------------------------------------------------------
    def interrupted(self) -> str:
        """What the restart has interrupted, as a sentence; "" if nothing or if it was dismissed."""
        queued = len(self._runner.queue.entries())
        if self._interrupted is None:
            self._interrupted = find_interrupted(self._home, queued)
        return replace(self._interrupted, queued=min(queued, self._interrupted.queued)).sentence

    def resume_interrupted(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Resume what the restart has interrupted: the run, and after it the queue."""
        self.interrupted()
        run = self._interrupted.run if self._interrupted else ""
        if not run:
            return self.start_queue({})
        try:
            return {"run": self._runner.resume_run(run)}
        except LoraTrainError:
            if not self._runner.queue.entries() or self._runner.active_run:
                raise
            log.exception("%s cannot be resumed; the queue continues without it", run)
            return self.start_queue({})

    def dismiss(self, _values: Mapping[str, Any]) -> None:
        """No longer offer to continue; the run stays in Results, and the queue as it is."""
        self._interrupted = Interrupted("", 0, 0, 0)

    def describe_offer(self, kind: str, run: str) -> dict[str, str]:
        """The button beside the message of a run: what it requests, its label, and what to confirm; {} for none."""
        if kind == "other-model":
            return {"action": "runs-other-model", "label": "Train on this model…", "confirm": _OTHER_MODEL}
        lora = newest_lora(RunFolder(self._home / run)) if kind == "continue-from" else None
        return {"action": "runs-continue-from", "label": f"Continue from {lora.stem}", "confirm": ""} if lora else {}

    def export(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of the run as a TOML file: its name and text."""
        folder = self.folder_of(values)
        try:
            return {"name": f"{folder.root.name}.toml", "text": folder.config.read_text(encoding="utf-8")}
        except OSError as error:
            raise OutputError(f"{folder.config} cannot be read: {error.strerror or error}.") from error

    def report(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A text about the run for a bug report, without names and paths: its file name and text."""
        from lib_lora_train.runs.records.run_report import (
            read_report,  # loads PyTorch, to ask for its version and the GPU
        )

        return {"name": "lora-train-report.txt", "text": read_report(self.folder_of(values), self._runner.host.name)}

    def resume_run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Resume the run, or extend it by `more_epochs`."""
        return {
            "run": self._runner.resume_run(
                self.folder_of(values).root.name, more_epochs=int(values.get("more_epochs", 0))
            )
        }

    def enqueue(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Queue the run, to resume or extend it."""
        run = self.folder_of(values).root.name
        return {"id": self._runner.enqueue_resume(run, more_epochs=int(values.get("more_epochs", 0)))}

    def move(self, values: Mapping[str, Any]) -> None:
        """Move a queued run to another position."""
        self._runner.queue.move(str(values["id"]), int(values["place"]))

    def remove(self, values: Mapping[str, Any]) -> None:
        """Remove a run from the queue."""
        self._runner.queue.remove(str(values["id"]))

    def start_queue(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Start the first queued run."""
        return {"run": self._runner.start_queue()}

    # --- files ---------------------------------------------------------------------------------
    def rename(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Rename one of the LoRA files of the run, with its card and preview."""
        folder, name = self._idle_folder(values), str(values.get("name", ""))
        written = {str(file.path): file for file in read_loras(folder)}
        file = written.get(str(values.get("path", "")))
        if file is None:
            raise HostError("This file does not belong to the run. Open the run again.")
        if file.is_missing:
            raise HostError(f"{file.path} is missing: it was moved, renamed or deleted outside this page.")
        old, new = file.path, new_file(file.path.parent, name)
        _rename(write_renamed, old, new)
        renamed = LoraWritten(str(new), file.epoch, file.step)
        self._runner.note(folder.root.name, LoraRemoved(str(file.recorded)), renamed)
        for beside, new_beside in zip(sidecars(old), sidecars(new), strict=True):
            if beside.is_file():
                _rename(Path.rename, beside, new_beside)
        return {"path": str(new)}

    def preview_delete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What deleting the run would delete: file names, and the total size in MB."""
        folder = self._idle_folder(values)
        files = self._files(folder)
        inside = [path for path in folder.root.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in (*files, *inside))
        return {"files": [path.name for path in files], "inside": len(inside), "megabytes": size / 1e6}

    def delete(self, values: Mapping[str, Any]) -> None:
        """Delete the folder of the run and, if `files` is true, the LoRA files that it wrote with their cards."""
        folder = self._idle_folder(values)
        try:
            for path in self._files(folder) if values.get("files") else ():
                path.unlink(missing_ok=True)
            shutil.rmtree(folder.root)
        except OSError as error:
            raise OutputError(f"{folder.root} cannot be deleted: {error.strerror or error}.") from error

    def _files(self, folder: RunFolder) -> list[Path]:
        """The existing LoRA files that this run wrote, each followed by its card and previews."""
        loras = [file.path for file in read_loras(folder) if not file.is_missing]
        return [path for lora in loras for path in (lora, *sidecars(lora)) if path.is_file()]

    # --- finding a run -------------------------------------------------------------------------
    def folder_of(self, values: Mapping[str, Any]) -> RunFolder:
        """The folder of the run; HostError for anything that is not a run in `home`."""
        name = str(values.get("run", ""))
        folder = RunFolder(self._home / name)
        if not name or Path(name).name != name or name in (".", "..") or not folder.log.is_file():
            raise HostError(f"There is no run {name!r}; it may have been deleted. Reload the list.")
        return folder

    def require(self, values: Mapping[str, Any]) -> str:
        """The id of the run that the page names; HostError if there is none."""
        return self.folder_of(values).root.name

    def config_of(self, run: str) -> TrainConfig:
        """The settings of a run by its id, with the paths of a moved run found again; HostError if there is none."""
        folder = self.folder_of({"run": run})
        return read_move(folder).config(self._config(folder))

    def _idle_folder(self, values: Mapping[str, Any]) -> RunFolder:
        folder = self.folder_of(values)
        if self._runner.active_run == folder.root.name:
            raise HostError("This run is still training. Stop it, or wait until it has finished.")
        return folder

    def _config(self, folder: RunFolder) -> TrainConfig:
        return read_config(read_toml_config(folder.config, is_ours=True))[0]


def _rename(rename: Callable[[Path, Path], object], old: Path, new: Path) -> None:
    """Rename a file with this function, which changes nothing if it fails; OutputError then."""
    try:
        rename(old, new)
    except OSError as error:
        raise OutputError(f"{old.name} cannot be renamed: {error.strerror or error}.") from error


def _model_of(records: Iterable[Mapping[str, Any]]) -> str:
    """The model that the run was trained on last: its name and what it is; "" if the log does not say."""
    notes = [r for r in records if r["kind"] == "Noted" and r["message"].startswith(MODEL_NOTE)]
    return f"{notes[-1]['where']}: {notes[-1]['message'].removeprefix(MODEL_NOTE).removesuffix('.')}" if notes else ""
