"""A small run on the embedded model, for the tests of whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib_lora_train.config.sample_prompts import sample_prompts
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import Event, StateChanged
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.runs import trainer
from lib_lora_train.runs.records.folder import Identity, RunFolder, new_run_folder
from lib_lora_train.runs.records.history import RunHistory
from lib_lora_train.runs.run_context import RunContext
from lib_lora_train.training.training_run import Training
from tests.stand_ins.training_parts import small_config, started

NO_SAMPLES: Mapping[str, Any] = {"sample_prompts": (), "sample_every_n_epochs": 0}
"""Settings of a run without samples and grid; empty prompts alone are written by the run."""
NOT_MEASURED: Mapping[str, Any] = {"measure_steady_loss": False, "measure_prompts": False, "test_strengths": False}
"""Settings of a run whose epochs are not measured, which takes longer than a few steps do."""


class RunSetup(NamedTuple):
    """The config, host and folder of a test run."""

    config: TrainConfig
    host: StandaloneHost
    folder: RunFolder

    def run(self, control: Control | None = None, **values: Any) -> list[Event]:
        config = self.config.replace(**values)
        return list(trainer.run_training(config, self.host, folder=self.folder, control=control or Control()))


def small_run_setup(host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> RunSetup:
    """Three images, two epochs of three steps, two quick prompts; nothing is measured."""
    source = next((demo_dir / "train").iterdir())
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted(source.iterdir())[:6]:
        shutil.copy(path, data)
    host.lora_dir = tmp_path / "Lora"
    config = TrainConfig(
        concepts=(Concept(folder=str(data), trigger="zorp"),),
        output_name="test",
        resolution=128,
        min_bucket=64,
        epochs=2,
        batch_size=1,
        rank=2,
        sample_prompts=("zorp --s 1 --l 1 --d 5", "fox --s 1 --l 1"),
        **NOT_MEASURED,
    )
    return RunSetup(config, host, new_run_folder(tmp_path / "outputs", "test"))


def run_context(
    model: DiffusionModel, tmp_path: Path, *, control: Control | None = None, **values: Any
) -> tuple[RunContext, Training]:
    """A run that is about to train on a tiny model, with images that exist by name only, four steps in an epoch.

    Whoever makes it removes the adapter. The other settings are `values`.
    """
    config = small_config(**{**NO_SAMPLES, **NOT_MEASURED, "make_grid": False, **values})
    training = started(model, config)
    lora_dir = tmp_path / "Lora"
    lora_dir.mkdir()
    folder = RunFolder(tmp_path / "outputs" / "run")
    folder.samples.mkdir(parents=True)
    run = RunContext(
        config=config,
        host=StandaloneHost(None, None, lora_dir, "cpu"),
        folder=folder,
        control=control or Control(),
        plan=training.plan,
        prompts=sample_prompts(config),
        identity=Identity("test", str(lora_dir), "session", 0.0),
        model=model,
        adapter=training.adapter,
        state=None,
        history=RunHistory(),
        training=training,
    )
    return run, training


def only(events: list[Event], kind: type[Any]) -> list[Any]:
    """The events of one kind."""
    return [event for event in events if isinstance(event, kind)]


def ending(events: list[Event]) -> str:
    """The state the run ended in."""
    assert isinstance(events[-1], StateChanged)
    return events[-1].state
