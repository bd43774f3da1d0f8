"""A grid drawn after a run: its epochs × prompts × strengths, with a first row without LoRA.

Each cell is a file whose name says what is drawn in it. What a grid shows is written down before its first cell is
drawn, so that it can be shown meanwhile, and continued after it was cancelled or the program was ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from lib_lora_train.config.method_catalog import named_word
from lib_lora_train.config.sample_prompts import SamplePrompt, sample_prompts
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import HostError, OutputError
from lib_lora_train.core.writable import failed_write_advice
from lib_lora_train.hosts.host import GenerationRequest
from lib_lora_train.runs.images.webui_images import generation_request
from lib_lora_train.runs.records.folder import RunFolder, write_json
from lib_lora_train.runs.records.history import read_loras
from lib_lora_train.runs.records.past_config import read_past_config
from lib_lora_train.runs.records.past_runs import newest_run_with_loras

PromptChoice: TypeAlias = Literal["samples", "triggers"]

_MAX_STRENGTH, _MAX_STRENGTHS = 5.0, 12


@dataclass(frozen=True)
class GridChoice:
    """What the user wants to see of a run ("": the newest one with LoRA files), with a sampler ("": the run's own)."""

    run: str = ""
    sampler: str = ""
    prompts: PromptChoice = "samples"
    strengths: tuple[float, ...] = (1.0,)


def read_choice(values: Mapping[str, Any]) -> GridChoice:
    """The choice in the values of a request; HostError, with what is possible, for anything else."""
    prompts = values.get("prompts") or "samples"
    if prompts not in get_args(PromptChoice):
        raise HostError(f"A grid shows {' or '.join(get_args(PromptChoice))}, not {prompts}.")
    strengths = read_strengths(str(values.get("strengths", "")))
    return GridChoice(values.get("run", ""), values.get("sampler", ""), cast(PromptChoice, prompts), strengths)


def read_strengths(text: str) -> tuple[float, ...]:
    """`0.6, 0.8 1` → (0.6, 0.8, 1.0); (1.0,) for an empty text. HostError for what is no strength."""
    found = []
    for word in filter(None, re.split(r"[\s,;，、]+", text)):
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not 0 < value <= _MAX_STRENGTH:
            raise HostError(f"{word} is not a strength. Enter numbers from 0.05 to {_MAX_STRENGTH:g}, such as 0.6, 1.")
        found.append(value)
    if len(found) > _MAX_STRENGTHS:
        raise HostError(f"{len(found)} strengths are too many to compare. Enter at most {_MAX_STRENGTHS}.")
    return tuple(sorted(dict.fromkeys(found))) or (1.0,)


@dataclass(frozen=True)
class LoraRow:
    """One row of the grid: a LoRA file at a strength. Without `path` it is the model alone."""

    label: str
    path: Path | None = None
    strength: float = 1.0

    @property
    def lora(self) -> str:
        """The name of the file in prompts, "" without LoRA."""
        return self.path.stem if self.path else ""


@dataclass(frozen=True)
class GridTask:
    """What to draw: a row for every LoRA file of a run that still exists, and strength. `config` is that of the run."""

    folder: RunFolder
    config: TrainConfig
    prompts: tuple[SamplePrompt, ...]
    rows: tuple[LoraRow, ...]

    @property
    def total(self) -> int:
        """Number of cells."""
        return len(self.prompts) * len(self.rows)

    def request(self, row: LoraRow, prompt: SamplePrompt) -> GenerationRequest:
        """What is drawn in a cell."""
        return generation_request(
            prompt,
            lora=row.path,
            clip_skip=self.config.clip_skip,
            strength=row.strength,
            word=named_word(self.config),
        )

    def files(self) -> dict[str, Path]:
        """The LoRA files by their names in prompts."""
        return {row.lora: row.path for row in self.rows if row.path}


def find_grid_task(home: Path, choice: GridChoice) -> GridTask:
    """The grid of a run in `home`; HostError if there is no such run with LoRA files."""
    newest = {"run": choice.run} if choice.run else newest_run_with_loras(home)
    if newest is None:
        raise HostError("No run has saved a LoRA file yet. The grid can be generated after the first epoch.")
    folder = RunFolder(home / newest["run"])
    rows = tuple(_lora_rows(folder, choice.strengths))
    if not rows:
        raise HostError(f"{folder.root.name} has no LoRA files, so there is nothing to draw. Choose another run.")
    config = read_past_config(folder)
    return GridTask(folder, config, _prompts(config, choice.prompts), (LoraRow("no LoRA"), *rows))


def _lora_rows(folder: RunFolder, strengths: tuple[float, ...]) -> Iterator[LoraRow]:
    """The rows of each of the run's LoRA files that still exists."""
    for file in read_loras(folder):
        label = f"epoch {file.epoch}" if file.epoch else f"step {file.step}"
        for strength in () if file.is_missing else strengths:
            yield LoraRow(label if strengths == (1.0,) else f"{label} · ×{strength:g}", file.path, strength)


def _prompts(config: TrainConfig, choice: PromptChoice) -> tuple[SamplePrompt, ...]:
    """The run's sample prompts, or the trigger words of all concepts; these also if it has no prompts."""
    learnt = (concept for concept in config.concepts if concept.trigger and not concept.is_regularisation)
    names = dict.fromkeys(", ".join(filter(None, (one.trigger, one.class_word))) for one in learnt)
    triggers = sample_prompts(config.replace(sample_prompts=tuple(names) or ("",)))
    return (sample_prompts(config) if choice == "samples" else ()) or triggers


# --- the sheet ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SheetColumn:
    """A prompt of the grid."""

    prompt: str
    seed: int
    is_control: bool


@dataclass(frozen=True)
class SheetRow:
    """A row of the grid, and the names of the files of its cells."""

    label: str
    lora: str
    strength: float
    cells: tuple[str, ...]


@dataclass(frozen=True)
class GridSheet:
    """What a grid shows; `started` in seconds since 1970. The cells that exist are drawn."""

    title: str
    sampler: str
    columns: tuple[SheetColumn, ...]
    rows: tuple[SheetRow, ...]
    started: float

    @property
    def id(self) -> str:
        """The same for the same cells."""
        return _hash(repr([row.cells for row in self.rows]))[:12]


def make_sheet(task: GridTask, *, model: str, sampler: str) -> GridSheet:
    """The sheet of a grid drawn with this model and sampler."""

    def cell(row: LoraRow, prompt: SamplePrompt) -> str:
        version = row.path.stat().st_mtime_ns if row.path else 0
        return f"{_hash(repr((task.request(row, prompt), version, model, sampler)))[:24]}.png"

    columns = tuple(SheetColumn(prompt.prompt, prompt.seed, prompt.is_control) for prompt in task.prompts)
    rows = tuple(
        SheetRow(row.label, row.lora, row.strength, tuple(cell(row, prompt) for prompt in task.prompts))
        for row in task.rows
    )
    return GridSheet(f"{task.config.output_name} on {model}, {sampler}", sampler, columns, rows, time.time())


def write_sheet(folder: RunFolder, sheet: GridSheet) -> None:
    """Write what the grid shows, unless it was written before; OutputError if that fails."""
    path = folder.epoch_grids / f"{sheet.id}.json"
    if path.exists():
        return
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be created: {error.strerror}. {failed_write_advice(error)}") from error
    write_json(path, asdict(sheet))


def read_sheets(folder: RunFolder) -> list[GridSheet]:
    """The grids of a run, newest first, also unfinished ones; those that cannot be read are left out."""
    found = []
    for path in folder.epoch_grids.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found.append(_sheet_from(json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda sheet: sheet.started, reverse=True)


def _sheet_from(values: Mapping[str, Any]) -> GridSheet:
    columns = tuple(SheetColumn(str(c["prompt"]), int(c["seed"]), bool(c["is_control"])) for c in values["columns"])
    rows = tuple(
        SheetRow(str(r["label"]), str(r["lora"]), float(r["strength"]), tuple(Path(c).name for c in r["cells"]))
        for r in values["rows"]
    )
    if not rows or any(len(row.cells) != len(columns) for row in rows):
        raise ValueError("not a sheet")
    return GridSheet(str(values["title"]), str(values["sampler"]), columns, rows, float(values["started"]))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
