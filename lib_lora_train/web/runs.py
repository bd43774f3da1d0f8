"""The Results panel's side of the server: runs of the past, and what can be done with one of them. No gradio here."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib_lora_train.config.train_config import TrainConfig, config_values, read_config
from lib_lora_train.core.errors import HostError, LoraTrainError, OutputError
from lib_lora_train.core.events import LoraRemoved, LoraWritten
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.runs.event_log import log_line, log_record, read_log
from lib_lora_train.runs.folder import RunFolder
from lib_lora_train.runs.past_runs import past_runs
from lib_lora_train.runs.tensorboard import BoardServer
from lib_lora_train.web.image_tokens import ImageTokens

if TYPE_CHECKING:
    from lib_lora_train.runs.runner import JobRunner

RUNS_SHOWN = 30
_TOLD = ("LoraWritten", "SampleDrawn", "GridDrawn", "EpochDone", "Measured")
_NAME = re.compile(r"[^\\/:*?\"<>|\x00-\x1f.][^\\/:*?\"<>|\x00-\x1f]{0,99}")
_CARDS = (".json", ".png", ".preview.png")

Stage = Callable[[TrainConfig, str], None]


class RunSession:
    """Answers about the runs in `home`. `stage` keeps a run's settings until the page takes them into its form."""

    def __init__(self, runner: JobRunner, home: Path, shelf: ImageTokens, stage: Stage) -> None:
        self._runner = runner
        self._home = home
        self._shelf = shelf
        self._stage = stage
        self._board = BoardServer(home)

    def asks(self) -> dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]]:
        """What the page's buttons ask, by name."""
        return {
            "runs-list": self.list_runs,
            "runs-show": self.show,
            "runs-settings": self.take_settings,
            "runs-export": self.export,
            "runs-go-on": self.go_on,
            "runs-rename": self.rename,
            "runs-to-delete": self.to_delete,
            "runs-delete": self.delete,
            "runs-board": lambda _: {"address": self._board.address()},
            "queue-add-run": self.enqueue,
            "queue-move": self.move,
            "queue-remove": self.remove,
            "queue-start": self.start_queue,
        }

    # --- looking -------------------------------------------------------------------------------
    def list_runs(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """The newest runs with what became of them."""
        return {"runs": list(itertools.islice(past_runs(self._home, self._runner.live), RUNS_SHOWN))}

    def show(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """One run: the settings that differ from the defaults, and what it told of files that are still there."""
        folder = self._folder(values)
        config = self._config(folder)
        settings = config_values(config, only_changed=True)
        return {
            "run": folder.root.name,
            "settings": {name: value for name, value in settings.items() if name != "concepts"},
            "concepts": settings.get("concepts", []),
            "triggers": [concept.trigger for concept in config.concepts if concept.trigger],
            "events": [told for record in read_log(folder.log) if (told := self._told(record))],
        }

    def _told(self, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """A record as the page draws it; None for one that says nothing there, or whose file is gone."""
        if record["kind"] not in _TOLD or ("path" in record and not Path(record["path"]).is_file()):
            return None
        if record["kind"] in ("SampleDrawn", "GridDrawn"):
            return {**record, "token": self._shelf.publish([Path(record["path"])])[0]}
        return dict(record)

    # --- using ---------------------------------------------------------------------------------
    def take_settings(self, values: Mapping[str, Any]) -> None:
        """Let the page fill its form in with the run's settings."""
        folder = self._folder(values)
        self._stage(self._config(folder), folder.root.name)

    def export(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The run's settings as a file's name and text, to be trained again anywhere."""
        folder = self._folder(values)
        try:
            return {"name": f"{folder.root.name}.toml", "text": folder.config.read_text(encoding="utf-8")}
        except OSError as error:
            raise OutputError(f"{folder.config} cannot be read: {error.strerror or error}.") from error

    def go_on(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Resume the run, or extend it by `more_epochs`."""
        return {
            "run": self._runner.go_on(self._folder(values).root.name, more_epochs=int(values.get("more_epochs", 0)))
        }

    def enqueue(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Let the run wait for its turn to go on."""
        run = self._folder(values).root.name
        return {"id": self._runner.enqueue_going_on(run, more_epochs=int(values.get("more_epochs", 0)))}

    def move(self, values: Mapping[str, Any]) -> None:
        """Put a waiting run at a place."""
        self._runner.queue.move(str(values["id"]), int(values["place"]))

    def remove(self, values: Mapping[str, Any]) -> None:
        """Let a run not wait any more."""
        self._runner.queue.remove(str(values["id"]))

    def start_queue(self, _values: Mapping[str, Any]) -> dict[str, Any]:
        """Begin the first waiting run."""
        return {"run": self._runner.start_queue()}

    # --- files ---------------------------------------------------------------------------------
    def rename(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give one of the run's LoRA files another name, and its card with it."""
        folder, name = self._folder_at_rest(values), str(values.get("name", "")).strip()
        written = {record["path"]: record for record in self._written(folder)}
        record = written.get(str(values.get("path", "")))
        if record is None:
            raise HostError("This file is not one of the run's. Look at the run again.")
        if not _NAME.fullmatch(name):
            raise LoraTrainError('Give a plain name without / \\ : * ? " < > | and without a dot in front.')
        old = Path(record["path"])
        new = old.with_name(f"{name}.safetensors")
        taken = [path for path in (new, *_cards(new)) if path.exists()]
        if taken:
            raise LoraTrainError(f"{taken[0].name} is there already. Choose another name.")
        try:
            for ending in _CARDS:
                if old.with_suffix(ending).is_file():
                    old.with_suffix(ending).rename(new.with_suffix(ending))
            old.rename(new)
        except OSError as error:
            raise OutputError(f"{old.name} cannot be renamed: {error.strerror or error}.") from error
        renamed = LoraWritten(str(new), int(record["epoch"]), int(record["step"]))
        with folder.log.open("a", encoding="utf-8") as log:
            log.write(log_line(log_record(LoraRemoved(str(old)))) + log_line(log_record(renamed)))
        return {"path": str(new)}

    def to_delete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What deleting the run would take away: file names, and the size of everything in MB."""
        folder = self._folder_at_rest(values)
        files = self._files(folder)
        inside = [path for path in folder.root.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in (*files, *inside))
        return {"files": [path.name for path in files], "inside": len(inside), "megabytes": size / 1e6}

    def delete(self, values: Mapping[str, Any]) -> None:
        """Delete the run's folder and, if `files` is true, the LoRA files that this run wrote, with their cards."""
        folder = self._folder_at_rest(values)
        try:
            for path in self._files(folder) if values.get("files") else ():
                path.unlink(missing_ok=True)
            shutil.rmtree(folder.root)
        except OSError as error:
            raise OutputError(f"{folder.root} cannot be deleted: {error.strerror or error}.") from error

    def _files(self, folder: RunFolder) -> list[Path]:
        """The LoRA files that this run wrote and that are still there, each with its card."""
        loras = dict.fromkeys(Path(record["path"]) for record in self._written(folder))
        return [path for lora in loras if lora.is_file() for path in (lora, *_cards(lora)) if path.is_file()]

    def _written(self, folder: RunFolder) -> Iterable[Mapping[str, Any]]:
        return (record for record in read_log(folder.log) if record["kind"] == "LoraWritten")

    # --- which run -----------------------------------------------------------------------------
    def _folder(self, values: Mapping[str, Any]) -> RunFolder:
        """The folder of the run asked for; HostError for anything that is no run in `home`."""
        name = str(values.get("run", ""))
        folder = RunFolder(self._home / name)
        if not name or Path(name).name != name or name in (".", "..") or not folder.log.is_file():
            raise HostError(f"There is no run {name!r} (any more). Look at the list again.")
        return folder

    def _folder_at_rest(self, values: Mapping[str, Any]) -> RunFolder:
        folder = self._folder(values)
        if self._runner.live == folder.root.name:
            raise HostError("This run is at work. Stop it or wait for its end.")
        return folder

    def _config(self, folder: RunFolder) -> TrainConfig:
        return read_config(read_toml_config(folder.config))[0]


def _cards(lora: Path) -> list[Path]:
    return [lora.with_suffix(ending) for ending in _CARDS]
