"""What a runner knows of its run: its events, curves and files, filled in as they happen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import (
    Event,
    LoraRemoved,
    LoraWritten,
    Planned,
    Resumed,
    StateChanged,
    StepDone,
    from_record,
)
from lib_lora_train.core.progress import Eta
from lib_lora_train.runs.planning import RunPlan
from lib_lora_train.runs.records.event_log import read_log
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.gpu_memory import MemoryCurve
from lib_lora_train.runs.records.moved_run import read_move
from lib_lora_train.runs.trainer import RunOptions


@dataclasses.dataclass
class CurrentRun:
    """The current run; written by its thread, read under the runner's lock."""

    folder: RunFolder
    config: TrainConfig
    control: Control
    run_plan: RunPlan | None = None
    from_state: Path | None = None
    options: RunOptions | None = None
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    losses: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    rates: dict[str, list[tuple[int, float]]] = dataclasses.field(default_factory=dict)
    norms: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    step_seconds: float = 0.0
    layer_norms: tuple[float, float, float] | None = None
    memory: MemoryCurve = dataclasses.field(default_factory=MemoryCurve)
    loras: dict[str, None] = dataclasses.field(default_factory=dict)
    state: str = "running"
    message: str = ""
    offer: str = ""
    eta: Eta = dataclasses.field(default_factory=Eta)
    epoch: int = 0
    plan: Planned | None = None

    def record(self, event: Event, record: dict[str, Any]) -> None:
        """Store an event and its log record."""
        self.events.append(record)
        if isinstance(event, StepDone):
            self.losses.append((event.step, event.loss))
            self.norms.append((event.step, event.grad_norm))
            self.step_seconds = event.seconds
            self.layer_norms = event.norms
            for group, rate in event.learning_rates.items():
                self.rates.setdefault(group, []).append((event.step, rate))
            self.epoch = event.epoch
        elif isinstance(event, LoraWritten):
            self.loras[event.path] = None
        elif isinstance(event, LoraRemoved):
            self.loras.pop(event.path, None)
        elif isinstance(event, Planned):
            self.plan = event
        elif isinstance(event, StateChanged):
            self.state, self.message, self.offer = event.state, event.message, event.offer
        elif isinstance(event, Resumed):
            self._drop_after(event.step)

    def _drop_after(self, step: int) -> None:
        """Drop the values of later steps, which will be repeated."""
        self.losses = [point for point in self.losses if point[0] <= step]
        self.norms = [point for point in self.norms if point[0] <= step]
        self.rates = {name: [p for p in points if p[0] <= step] for name, points in self.rates.items()}

    def load_log(self) -> None:
        """Load the events from before the interruption, with the files of a moved run where they are now."""
        move = read_move(self.folder)
        for record in read_log(self.folder.log):
            found = move.record(record)
            self.record(from_record(found), found)
        self.state, self.message, self.offer = "running", "", ""
