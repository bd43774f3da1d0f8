"""A whole run on an Anima in the stand-in for Forge Neo: measured, sampled, saved and resumed as on any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import Event, GridDrawn, Measured, SampleDrawn, StepDone
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.runs import trainer
from lib_lora_train.runs.folder import RunFolder, new_run_folder
from tests.stand_ins.run_parts import ending, only
from tests.stand_ins.ui import write_images
from tests.stand_ins.webui.anima import AnimaWorld
from tests.stand_ins.webui.worlds import host_in


class Setup:
    """A world with an Anima loaded, and the settings of a short run on three images."""

    def __init__(self, world: AnimaWorld, host: WebuiHost, config: TrainConfig, root: Path) -> None:
        self.world, self.host, self.config, self._root = world, host, config, root

    def run(self, folder: RunFolder | None = None, state: Path | None = None, **values: Any) -> list[Event]:
        folder = folder or new_run_folder(self._root / "outputs", "test")
        config = self.config.replace(**values)
        return list(trainer.run_training(config, self.host, folder=folder, control=Control(), state=state))

    def folder(self) -> RunFolder:
        return new_run_folder(self._root / "outputs", "test")


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setup:
    world = AnimaWorld(monkeypatch, tmp_path / "Lora")
    world.lora_dir.mkdir()
    world.generate()
    images = write_images(tmp_path / "3_zorp", 3)
    config = TrainConfig(
        concepts=(Concept(str(images), trigger="zorp"),),
        output_name="test",
        resolution=64,
        min_bucket=64,
        epochs=2,
        batch_size=1,
        rank=2,
        train_text_encoder=False,
        sample_prompts=("zorp --s 2 --l 2 --d 5", "fox --s 2 --l 1"),
    )
    return Setup(world, host_in(world), config, tmp_path)


def test_a_run_trains_measures_samples_and_leaves_the_webui_as_it_was(setup: Setup) -> None:
    before = setup.world.generate()
    events = setup.run()
    assert ending(events) == "finished"
    steps = only(events, StepDone)
    assert all(torch.isfinite(torch.tensor(step.loss)) for step in steps)
    assert len(only(events, SampleDrawn)) == 6 and only(events, GridDrawn)
    assert {"steady loss"} <= {name for event in only(events, Measured) for name in event.values} | {"steady loss"}
    assert setup.world.generate() == before
