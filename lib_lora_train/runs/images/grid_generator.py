"""Draws grids of past runs, one at a time, in a thread: by the webui, or stand-alone by the trainer's own samplers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora_train.core.errors import GenerationInterrupted, HostError, LoraTrainError, ModelUnavailableError
from lib_lora_train.core.wording import count
from lib_lora_train.hosts.host import GenerationRequest, GenerationWatch, Host, Txt2Img
from lib_lora_train.runs.images.epoch_grid import (
    GridChoice,
    GridSheet,
    GridTask,
    find_grid_task,
    make_sheet,
    write_sheet,
)
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.sampling.grid import GridRow, compose_grid
from lib_lora_train.sampling.infotext import read_image, write_image
from lib_lora_train.sampling.used_sampler import used_sampler

_GO_ON = "Draw the grid again to continue."
_IDLE = {
    "state": "idle",
    "run": None,
    "sheet": "",
    "done": 0,
    "total": 0,
    "step": 0,
    "eta_seconds": None,
    "message": "",
    "path": "",
    "time": 0.0,
}


class GridCancelled(HostError):
    """The grid was cancelled."""


def start_txt2img(host: Host, task: GridTask, sampler: str = "") -> Txt2Img:
    """What draws the grid: the webui's sampler, or stand-alone the trainer's. An empty `sampler` is the run's own.

    HostError if there is no such sampler.
    """
    if host.sampler_names():
        own = used_sampler(task.config.effective_sampler, task.config.prediction_type).name
        return host.txt2img(sampler or own)
    from lib_lora_train.runs.images.own_txt2img import OwnTxt2Img  # loads PyTorch

    return OwnTxt2Img(host, task.config, task.files(), sampler or task.config.sample_sampler)


def draw_grid(
    task: GridTask,
    txt2img: Txt2Img,
    sheet: GridSheet,
    on_progress: Callable[[int, bool], None],
    watch: GenerationWatch | None = None,
) -> Path:
    """Draw the cells that are missing, then the sheet as one image, and return its path.

    Calls `on_progress` with the number of cells that exist, and whether the last one was drawn now. Every cell is kept,
    so that a grid that was cancelled, interrupted or failed can be continued. GridCancelled, after a sampling step,
    once the `watch` is cancelled; HostError as from `Txt2Img.generate`, also if the checkpoint changes: the rows would
    not be comparable. OutputError if a cell cannot be written.
    """
    write_sheet(task.folder, sheet)
    rows, done = [], 0
    for row, shown in zip(task.rows, sheet.rows, strict=True):
        images: list[Image.Image] = []
        for prompt, name in zip(task.prompts, shown.cells, strict=True):
            path = task.folder.epoch_grids / name
            image = read_image(path)
            is_new = image is None
            if image is None:
                image = _draw_cell(
                    path, txt2img, task.request(row, prompt), watch, f"{done} of {count(task.total, 'image')}"
                )
            images.append(image)
            done += 1
            on_progress(done, is_new)
        rows.append(GridRow(row.label, "", images))
    return _write_grid(task, sheet, rows)


def _draw_cell(
    path: Path, txt2img: Txt2Img, request: GenerationRequest, watch: GenerationWatch | None, done: str
) -> Image.Image:
    """The image of a cell, drawn now and kept at `path`."""
    try:
        drawn = txt2img.generate(request, watch)
    except GenerationInterrupted:
        if not (watch and watch.is_cancelled()):
            raise
        raise GridCancelled(f"Cancelled after {done}, which are kept. {_GO_ON}") from None
    write_image(path, drawn.image, drawn.infotext)
    return drawn.image


def _write_grid(task: GridTask, sheet: GridSheet, rows: list[GridRow]) -> Path:
    """The sheet as one image in the run's folder, written once."""
    path = grid_image(task.folder, sheet)
    if not path.exists():
        control = [place for place, prompt in enumerate(task.prompts) if prompt.is_control]
        columns = [prompt.prompt for prompt in task.prompts]
        write_image(path, compose_grid(columns, rows, title=sheet.title, control=control))
    return path


def grid_image(folder: RunFolder, sheet: GridSheet) -> Path:
    """Where the whole grid is written once all of its cells are drawn."""
    return folder.root / f"epoch-grid-{sheet.id}.png"


class GridGenerator:
    """Draws one grid at a time in a thread; inside a webui also while a training is running."""

    def __init__(self, host: Host, home: Path, is_training: Callable[[], bool] = lambda: False) -> None:
        self._host = host
        self._is_training = is_training
        self._home = home
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._status: dict[str, Any] = {**_IDLE}
        self._thread: threading.Thread | None = None

    def status(self) -> dict[str, Any]:
        """state (idle, drawing, done, cancelled, failed), run id, the sheet's id, cells done and total, the sampling
        step of the next cell (0 if unknown), the seconds left (None if unknown), message, and path and time of the
        finished grid.
        """
        with self._lock:
            return dict(self._status)

    def start(self, choice: GridChoice) -> str:
        """Start drawing a grid, or continue it, and return the run's id. HostError if that is not possible."""
        task = find_grid_task(self._home, choice)
        if self._is_training() and not self._host.sampler_names():  # a webui draws between the turns of a training
            raise HostError("A training is running. Draw the grid when it has ended.")
        with self._lock:
            if self._status["state"] == "drawing":
                raise HostError("A grid is already being generated. Press Cancel to stop it.")
            self._cancelled.clear()
            run = task.folder.root.name
            self._status = {**_IDLE, "state": "drawing", "run": run, "total": task.total}
        self._thread = threading.Thread(
            target=self._work, args=(task, choice.sampler), name="lora-train-grid", daemon=True
        )
        self._thread.start()
        return run

    def cancel(self) -> None:
        """Stop after the sampling step of the image that is being drawn; does nothing if no grid is."""
        self._cancelled.set()

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until the grid is finished or has failed."""
        if self._thread:
            self._thread.join(timeout_seconds)

    def _work(self, task: GridTask, sampler: str) -> None:
        """Draw the grid. Every outcome reaches the status; an unexpected error also goes to the console."""
        message = "It failed unexpectedly; see the console."
        try:
            path = self._draw(task, sampler)
            message = ""
            self._update(state="done", path=str(path), time=time.time())
        except GridCancelled as reason:
            self._update(message=str(reason), state="cancelled")
            message = ""
        except GenerationInterrupted as reason:
            message = f"{reason} {_GO_ON}"
        except ModelUnavailableError:
            message = f"Another checkpoint was selected while the grid was being generated. Select it again. {_GO_ON}"
        except (LoraTrainError, OSError) as error:
            message = str(error)
        finally:
            if message:
                self._update(state="failed", message=message)

    def _draw(self, task: GridTask, sampler: str) -> Path:
        txt2img = start_txt2img(self._host, task, sampler)
        sheet = make_sheet(task, model=txt2img.model_name, sampler=txt2img.sampler)
        self._update(sheet=sheet.id)
        began, drawn = time.monotonic(), 0

        def progress(done: int, is_new: bool) -> None:
            nonlocal drawn
            drawn += is_new
            left = (time.monotonic() - began) / drawn * (task.total - done) if drawn else None
            self._update(done=done, step=0, eta_seconds=left)

        watch = GenerationWatch(lambda step: self._update(step=step), self._cancelled.is_set)
        return draw_grid(task, txt2img, sheet, progress, watch)

    def _update(self, **values: Any) -> None:
        with self._lock:
            self._status.update(values)
