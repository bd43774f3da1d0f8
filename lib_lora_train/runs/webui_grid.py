"""Images that the webui draws itself from LoRA files, with any of its samplers: a run's samples, and its epoch grid.

Each image is a generation of the webui's own in its queue: whoever waits there goes between two of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lib_lora_train.config.sample_prompts import SamplePrompt, sample_prompts
from lib_lora_train.config.train_config import TrainConfig, read_config
from lib_lora_train.core.errors import HostError, LoraTrainError, ModelUnavailableError
from lib_lora_train.core.events import Event
from lib_lora_train.formats.toml import read_toml_config
from lib_lora_train.hosts.host import GeneratedImage, GenerationRequest, Host, Txt2Img
from lib_lora_train.runs.event_log import read_log
from lib_lora_train.runs.folder import RunFolder
from lib_lora_train.runs.history import read_records
from lib_lora_train.runs.past_runs import past_runs
from lib_lora_train.sampling.grid import GridRow, compose_grid
from lib_lora_train.sampling.infotext import write_image
from lib_lora_train.training.control import Control
from lib_lora_train.training.wait_for_model import wait_for_model


def generate_samples(
    txt2img: Txt2Img, prompts: Sequence[SamplePrompt], *, lora: str, clip_skip: int, control: Control
) -> Generator[Event, None, list[GeneratedImage]]:
    """One image per prompt with the LoRA file called `lora`, without any for ""; waits while the model is away."""
    drawn = []
    for prompt in prompts:
        order = _order(prompt, lora=lora, clip_skip=clip_skip)
        drawn.append((yield from wait_for_model(control, lambda order=order: txt2img.generate(order))))  # type: ignore[misc]
    return drawn


def _order(prompt: SamplePrompt, *, lora: str, clip_skip: int) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt.prompt,
        negative=prompt.negative,
        width=prompt.width,
        height=prompt.height,
        seed=prompt.seed,
        steps=prompt.steps,
        cfg=prompt.cfg,
        clip_skip=clip_skip,
        lora=lora,
    )


# --- the grid of a run that has files ------------------------------------------------------------


@dataclass(frozen=True)
class GridTask:
    """A run's grid: its prompts, and a row for each of its LoRA files that is still there."""

    folder: RunFolder
    name: str
    clip_skip: int
    prompts: tuple[SamplePrompt, ...]
    rows: tuple[tuple[str, str], ...]  # label, and the LoRA file's name without ending

    @property
    def total(self) -> int:
        """Images, those without LoRA counted."""
        return len(self.prompts) * (len(self.rows) + 1)


def find_grid_task(home: Path) -> GridTask:
    """The grid of the newest run in `home` that has LoRA files; HostError if there is none."""
    run = next((run for run in past_runs(home) if run["loras"]), None)
    if run is None:
        raise HostError("No run has written a LoRA file yet. The grid can be drawn after the first epoch.")
    folder = RunFolder(home / run["run"])
    config, _ = read_config(read_toml_config(folder.config))
    prompts = sample_prompts(config) or sample_prompts(config.replace(sample_prompts=_triggers(config)))
    return GridTask(folder, config.output_name, config.clip_skip, prompts, tuple(_read_rows(folder)))


def _triggers(config: TrainConfig) -> tuple[str, ...]:
    """What a run without sample prompts is looked at with."""
    return tuple(dict.fromkeys(c.trigger for c in config.concepts if c.trigger)) or ("",)


def _read_rows(folder: RunFolder) -> Iterator[tuple[str, str]]:
    """Label and name of each LoRA file of the run that is still there."""
    for file in read_records(read_log(folder.log)).files.values():
        if file.path.is_file():
            yield (f"epoch {file.epoch}" if file.epoch else f"step {file.step}"), file.path.stem


def generate_grid(task: GridTask, txt2img: Txt2Img, told: Callable[[int], None]) -> Path:
    """Draws the grid into the run's folder and returns its path; `told` hears how many images are done.

    Raises HostError as `Txt2Img.draw` does: a grid over two checkpoints would compare nothing.
    """
    rows = []
    done = 0
    for label, lora in (("no LoRA", ""), *task.rows):
        images: list[Image.Image] = []
        for prompt in task.prompts:
            images.append(txt2img.generate(_order(prompt, lora=lora, clip_skip=task.clip_skip)).image)
            done += 1
            told(done)
        rows.append(GridRow(label, "", images))
    title = f"{task.name} on {txt2img.model_name}, {txt2img.sampler}"
    write_image(task.folder.grid, compose_grid([prompt.prompt for prompt in task.prompts], rows, title=title))
    return task.folder.grid


_NOTHING = {"state": "idle", "run": None, "done": 0, "total": 0, "message": "", "path": "", "time": 0.0}


class GridGenerator:
    """Draws one grid at a time in a thread of its own, while a training goes on or not."""

    def __init__(self, host: Host, home: Path) -> None:
        self._host = host
        self._home = home
        self._lock = threading.Lock()
        self._status: dict[str, Any] = {**_NOTHING}
        self._thread: threading.Thread | None = None

    def sampler_names(self) -> tuple[str, ...]:
        """What the grid can be drawn with; () outside a webui."""
        return self._host.sampler_names()

    def status(self) -> dict[str, Any]:
        """state (idle, drawing, done, failed), run (its id), images done and in total, message, path and time."""
        with self._lock:
            return dict(self._status)

    def start(self, sampler: str) -> str:
        """Begin with the newest run's grid and return the run's id; HostError when that cannot be."""
        task = find_grid_task(self._home)
        with self._lock:
            if self._status["state"] == "drawing":
                raise HostError("A grid is being drawn already. The webui's Interrupt ends it.")
            run = task.folder.root.name
            self._status = {**_NOTHING, "state": "drawing", "run": run, "total": task.total}
        self._thread = threading.Thread(target=self._work, args=(task, sampler), name="lora-train-grid", daemon=True)
        self._thread.start()
        return run

    def wait(self, timeout_seconds: float | None = None) -> None:
        """Block until the grid is drawn or given up."""
        if self._thread:
            self._thread.join(timeout_seconds)

    def _work(self, task: GridTask, sampler: str) -> None:
        """Whatever happens is told in the status; a fault of ours too, before it reaches the console."""
        message = "The drawing ended with a fault; the console says more."
        try:
            txt2img = self._host.txt2img(sampler)
            path = generate_grid(task, txt2img, lambda done: self._tell(done=done))
            message = ""
            self._tell(state="done", path=str(path), time=time.time())
        except ModelUnavailableError:
            message = "Another checkpoint was chosen while the grid was drawn. Draw it again with one of them."
        except (LoraTrainError, OSError) as error:
            message = str(error)
        finally:
            if message:
                self._tell(state="failed", message=message)

    def _tell(self, **values: Any) -> None:
        with self._lock:
            self._status.update(values)
