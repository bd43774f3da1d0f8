"""The arrows, composed: folder → data set → plan → caches → training → files → grid.

The sole entry for page, command line and REST. `run_job` is a generator of events: whoever iterates
it decides the pace; all disk writing of a run happens here.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from lib_lora_train.adapters.file import read_adapter, write_adapter
from lib_lora_train.adapters.inject import Adapter, inject
from lib_lora_train.adapters.registry import spec_from_config
from lib_lora_train.config import TrainConfig
from lib_lora_train.data.plan import Plan, make_plan
from lib_lora_train.data.scan import scan_dataset
from lib_lora_train.errors import OutputError
from lib_lora_train.evaluate.grid import compose_grid, epoch_rows
from lib_lora_train.events import (
    EpochDone,
    Event,
    GridDrawn,
    LoraWritten,
    Measured,
    Noted,
    Phase,
    PhaseEnded,
    PhaseStarted,
    Planned,
    Progress,
    SampleDrawn,
    StateChanged,
)
from lib_lora_train.formats.metadata import RunFacts, run_metadata
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts.base import Host
from lib_lora_train.judge import judge, require_usable
from lib_lora_train.models.latents import LatentStore, encode_dataset
from lib_lora_train.models.model import DiffusionModel
from lib_lora_train.train.control import Control
from lib_lora_train.train.infotext import infotext, write_picture
from lib_lora_train.train.loop import train
from lib_lora_train.train.prompt import SamplePrompt, parse_prompt
from lib_lora_train.train.sample import draw_samples

Measure = Callable[[DiffusionModel, Adapter, int], Mapping[str, float]]
"""Measures one epoch (0: without LoRA) on the model with the adapter in place; called under the lease."""


@dataclass(frozen=True)
class RunFolder:
    """Where everything of one run but the LoRA files lies."""

    root: Path

    @property
    def log(self) -> Path:
        """One JSON event per line."""
        return self.root / "events.jsonl"

    @property
    def config(self) -> Path:
        """The settings, ready to be trained again."""
        return self.root / "config.toml"

    @property
    def samples(self) -> Path:
        """`epoch-000003-02.png`: third epoch, second prompt, counted from 1; epoch 0 is without LoRA."""
        return self.root / "samples"

    @property
    def grid(self) -> Path:
        """Epochs × prompts."""
        return self.root / "grid.png"

    @property
    def report(self) -> Path:
        """What was measured."""
        return self.root / "report.json"

    @property
    def crash_report(self) -> Path:
        """The traceback, if the run died of a fault of ours."""
        return self.root / "crash.txt"


def new_run_folder(home: Path, name: str) -> RunFolder:
    """A fresh folder `home/20260131-184500-name`; OutputError when it cannot be made."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        folder = RunFolder(home / f"{stamp}-{name}{suffix}")
        try:
            folder.samples.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(f"Cannot make the run folder {folder.root}: {error.strerror}. Choose another place.") from error
        return folder
    raise OutputError(f"{home} is full of runs of the same second. Choose another place.")


def plan_job(config: TrainConfig) -> Plan:
    """What would be trained, before anything heavy starts; ConfigError or DataError when it cannot be."""
    require_usable(judge(config))
    return make_plan(scan_dataset(config.concepts, config.caption_extension), config)


@dataclass
class _Run:
    """What the arrows of one run share."""

    config: TrainConfig
    host: Host
    folder: RunFolder
    control: Control
    plan: Plan
    prompts: tuple[SamplePrompt, ...]
    lora_dir: Path
    name: str
    adapter: Adapter
    started: float = field(default_factory=time.time)
    pictures: dict[int, list[Image.Image]] = field(default_factory=dict)
    notes: dict[int, str] = field(default_factory=dict)
    saved_step: int = 0


def run_job(
    config: TrainConfig, host: Host, *, folder: RunFolder, control: Control, measure: Measure | None = None
) -> Iterator[Event]:
    """Train as `config` says and tell everything as it happens; ends with a `StateChanged`.

    Files: LoRAs into the host's LoRA folder (or `config.output_dir`), all else into `folder`.
    The adapter leaves the model however the run ends. Raises LoraTrainError for what a user can mend.
    """
    yield StateChanged("running")
    write_toml_config(folder.config, config)
    plan = yield from _planned(config)
    with host.lease() as model:
        latents = yield from _timed("latents", len(plan.dataset.items), _encoded(model, plan, config, folder))
    run = _prepare(config, host, folder=folder, control=control, plan=plan, model=model)
    try:
        if run.name != config.output_name:
            yield Noted("hint", "output_name", f"{config.output_name} is taken; this run is written as {run.name}.")
        yield from _draw_epoch(run, 0)
        yield from _measured(run, measure, 0)
        yield from _timed("train", plan.total_steps, _trained(run, latents, measure))
        yield from _finish(run)
    finally:
        with host.lease():
            run.adapter.remove()
    yield StateChanged("stopped" if control.stopped else "finished", f"Everything of this run lies in {folder.root}.")


def _planned(config: TrainConfig) -> Iterator[Event]:
    """Settings judged, pictures scanned, batches planned."""
    problems = judge(config)
    require_usable(problems)
    yield from (Noted(p.level, p.where, p.message) for p in problems if p.level != "error")
    yield PhaseStarted("scan")
    began = time.monotonic()
    dataset = scan_dataset(config.concepts, config.caption_extension)
    plan = make_plan(dataset, config)
    yield from (Noted("warning", p.where, p.message) for p in (*dataset.skipped, *plan.warnings))
    yield PhaseEnded("scan", time.monotonic() - began)
    regularisation = sum(dataset.concepts[item.concept].is_regularisation for item in dataset.items)
    images = len(dataset.items) - regularisation
    yield Planned(images, regularisation, plan.steps_per_epoch, plan.epochs, plan.total_steps)
    return plan


def _encoded(model: DiffusionModel, plan: Plan, config: TrainConfig, folder: RunFolder) -> Iterator[Event]:
    """The pictures as latents, from the cache where they are known."""
    cache = folder.root.parent / "latents" if config.cache_to_disk else None
    return (yield from encode_dataset(model, plan, cache))


def _prepare(
    config: TrainConfig, host: Host, *, folder: RunFolder, control: Control, plan: Plan, model: DiffusionModel
) -> _Run:
    """Prompts parsed, the place for the files checked, the adapter put onto the model."""
    lora_dir = Path(config.output_dir) if config.output_dir else host.lora_dir
    name = free_name(lora_dir, config.output_name)
    with host.lease():
        adapter = inject(model, spec_from_config(config), seed=config.seed)
    return _Run(
        config=config,
        host=host,
        folder=folder,
        control=control,
        plan=plan,
        prompts=sample_prompts(config),
        lora_dir=lora_dir,
        name=name,
        adapter=adapter,
    )


def sample_prompts(config: TrainConfig) -> tuple[SamplePrompt, ...]:
    """The prompt lines with the run's defaults filled in; each prompt without `--d` gets a seed of its own."""
    return tuple(
        parse_prompt(
            line,
            SamplePrompt(
                prompt="",
                negative="",
                width=config.resolution,
                height=config.resolution,
                seed=config.seed + number,
                steps=config.sample_steps,
                cfg=config.sample_cfg,
            ),
        )
        for number, line in enumerate(config.sample_prompts)
    )


def free_name(folder: Path, name: str) -> str:
    """`name`, or `name-2`, `name-3`…: the first under which `folder` holds no LoRA file yet."""
    taken = {path.stem for path in folder.glob("*.safetensors")} if folder.is_dir() else set()

    def is_taken(candidate: str) -> bool:
        return any(stem == candidate or stem.startswith((f"{candidate}-0", f"{candidate}-step")) for stem in taken)

    return next(c for c in (name, *(f"{name}-{n}" for n in range(2, 100_000))) if not is_taken(c))


def _trained(run: _Run, latents: LatentStore, measure: Measure | None) -> Iterator[Event]:
    """The loop's events, and after each epoch its file, samples and numbers."""
    for event in train(run, latents):
        yield event
        if isinstance(event, EpochDone):
            yield from _after_epoch(run, event, measure)
