"""A whole run on an Anima in the stand-in for Forge Neo: measured, sampled, saved and resumed as on any model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.adapters.create import create_adapter
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ConfigError, HostError, ModelError
from lib_lora_train.core.events import Advised, Event, GridDrawn, LoraWritten, Measured, Noted, SampleDrawn, StepDone
from lib_lora_train.core.measures import BLEED, DRIFT, OBEDIENCE, STEADY_LOSS, VALIDATION_LOSS
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.models.architecture import ModelSpec
from lib_lora_train.runs import trainer
from lib_lora_train.runs.checks.kind_checks import kind_problems
from lib_lora_train.runs.measures.advice import advise_past_run
from lib_lora_train.runs.measures.image_losses import measure_past_run
from lib_lora_train.runs.measures.tag_report import measure_tags
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import RunFolder, new_run_folder
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


VALIDATED: dict[str, Any] = {"validation_share": 0.34, "learning_rate": 1e-3, **NO_SAMPLES}


def write_log(folder: RunFolder, events: list[Event]) -> None:
    folder.log.write_text("".join(log_line(log_record(event)) for event in events), encoding="utf-8")


def measured(events: list[Event]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for event in only(events, Measured):
        found.setdefault(event.epoch, {}).update(event.values)
    return found


def test_measures_that_need_no_features_are_taken(setup: Setup) -> None:
    concept = dataclasses.replace(setup.config.concepts[0], class_word="dog")
    values = {"sample_prompts": ("zorp dog", "fox"), "sample_every_n_epochs": 0, "make_grid": False}
    events = setup.run(**{**VALIDATED, **values}, concepts=(concept,), epochs=2)
    found = measured(events)
    assert {STEADY_LOSS, VALIDATION_LOSS} <= set(found[0])
    assert {STEADY_LOSS, VALIDATION_LOSS, OBEDIENCE, BLEED, DRIFT} <= set(found[2])
    assert all(math.isfinite(value) for values in found.values() for value in values.values())


def test_the_advice_is_the_epoch_with_the_lowest_validation_loss(setup: Setup) -> None:
    """At the end of the run, and afterwards from its log."""
    folder = setup.folder()
    events = setup.run(folder, **VALIDATED, epochs=3)
    write_log(folder, events)
    losses = {epoch: values[VALIDATION_LOSS] for epoch, values in measured(events).items()}
    best = min(losses, key=lambda epoch: losses[epoch])
    assert best > 0, "otherwise nothing is advised"
    (advice,) = only(events, Advised)
    assert (advice.epoch, advice.strength, advice.is_sure) == (best, 1.0, False)
    assert "strengths were not tested" in " ".join(advice.reasons)
    (again,) = only(list(advise_past_run(folder, setup.host, Control())), Advised)
    assert again == advice


def test_without_a_validation_loss_no_epoch_is_named_and_it_is_said_why(setup: Setup) -> None:
    folder = setup.folder()
    events = setup.run(folder, epochs=1)
    write_log(folder, events)
    assert not only(events, Advised)
    with pytest.raises(HostError, match=r"samples of Anima cannot be compared.* validation_share"):
        list(advise_past_run(folder, setup.host, Control()))


def test_a_run_ends_early_by_its_validation_loss(setup: Setup) -> None:
    values = {**VALIDATED, "learning_rate": 0.05, "lr_schedule": "constant"}
    events = setup.run(**values, epochs=12, early_stopping_epochs=1)
    assert any("The training ends here" in note.message for note in only(events, Noted))
    assert max(measured(events)) < 12 and ending(events) == "finished"


def test_images_by_loss_work_and_what_needs_a_unet_says_so(setup: Setup) -> None:
    folder = setup.folder()
    for image in Path(setup.config.concepts[0].folder).glob("*.png"):
        image.with_suffix(".txt").write_text("zorp, red, hat", encoding="utf-8")
    events = setup.run(folder, epochs=1, **NO_SAMPLES, **NOT_MEASURED)
    write_log(folder, events)
    found = _result(measure_past_run(folder, setup.host, Control()))
    assert len(found.images) == 3
    with pytest.raises(ModelError, match="Features of images cannot be read from Anima"):
        _result(measure_tags(folder, setup.host, Control()))


def _result(work: Any) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
