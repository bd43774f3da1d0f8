"""A whole run on an Anima in the stand-in for Forge Neo: measured, sampled, saved and resumed as on any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.core.events import Event, GridDrawn, LoraWritten, Measured, SampleDrawn, StepDone
from lib_lora_train.core.measures import STEADY_LOSS
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.runs import trainer
from lib_lora_train.runs.folder import RunFolder, new_run_folder
from lib_lora_train.runs.kind_checks import kind_problems
from tests.stand_ins.run_parts import NO_SAMPLES, NOT_MEASURED, ending, only
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


def test_prompts_that_cannot_be_read_are_named_by_the_check_of_the_settings() -> None:
    spec = ModelSpec("anima", "rectified_flow", False, 1.0, {}, {}, ())
    assert not [p for p in kind_problems(spec, TrainConfig(sample_prompts=("zorp --w x",))) if p.level == "error"]


def test_a_run_trains_measures_samples_and_leaves_the_webui_as_it_was(setup: Setup) -> None:
    before = setup.world.generate()
    events = setup.run()
    assert ending(events) == "finished"
    steps = only(events, StepDone)
    assert all(torch.isfinite(torch.tensor(step.loss)) for step in steps)
    assert len(only(events, SampleDrawn)) == 6 and only(events, GridDrawn)
    assert STEADY_LOSS in {name for event in only(events, Measured) for name in event.values}
    assert setup.world.generate() == before


def test_its_files_have_the_names_that_every_program_reads(setup: Setup) -> None:
    (path,) = {event.path for event in only(setup.run(epochs=1, **NO_SAMPLES, **NOT_MEASURED), LoraWritten)}
    file = read_adapter(path)
    assert all(key.startswith("diffusion_model.blocks.") and ".lora_" in key for key in file.state)
    assert file.metadata["ss_base_model_version"] == "anima"
    assert "ss_clip_skip" not in file.metadata or file.metadata["ss_clip_skip"] == "None"


def test_a_run_continues_from_its_own_file_as_fast_as_it_began(setup: Setup) -> None:
    values = {"epochs": 1, "alpha": 0.5, **NO_SAMPLES, **NOT_MEASURED}
    (first,) = only(setup.run(**values), LoraWritten)
    (second,) = only(setup.run(continue_from=first.path, output_name="again", **values), LoraWritten)
    metadata = read_adapter(second.path).metadata
    assert metadata["ss_network_alpha"] == "0.5"
    model = setup.host.load_model(setup.config)
    with setup.host.lease(model):
        adapter = create_adapter(model, setup.config.replace(continue_from=second.path))
        alphas = {float(tensor) for key, tensor in adapter.state().items() if key.endswith("alpha")}
        adapter.remove()
    assert alphas == {0.5}


def test_a_family_that_webuis_do_not_read_ends_before_anything_is_encoded(setup: Setup) -> None:
    with pytest.raises(ConfigError, match="is not read by any webui for Anima"):
        setup.run(family="ia3", **NO_SAMPLES)
    assert not setup.world.engine.calls
