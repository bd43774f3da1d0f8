"""A whole run on a rectified flow: recognised, trained, measured, drawn, written and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.core.events import LoraWritten, Measured, Noted, SampleDrawn
from lib_lora_train.core.measures import DRIFT, OBEDIENCE, STEADY_LOSS
from lib_lora_train.hosts.host import RunTarget
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.runs import trainer
from lib_lora_train.runs.checks.checkpoint_check import check_checkpoint
from lib_lora_train.runs.images.epoch_grid import GridChoice, find_grid_task, make_sheet
from lib_lora_train.runs.images.grid_generator import start_txt2img
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import RunFolder, read_identity
from lib_lora_train.runs.records.past_config import read_past_config
from lib_lora_train.runs.records.past_runs import xyz_text
from lib_lora_train.sampling.infotext import read_infotext, read_sample_settings
from lib_lora_train.web.lora_use import LoraUse
from tests.stand_ins.run_parts import NO_SAMPLES, NOT_MEASURED, RunSetup, ending, only, small_run_setup
from tests.stand_ins.tiny_models import write_tiny_checkpoint

FLOW: dict[str, Any] = {"prediction_type": "rectified_flow", "sample_sampler": "DDIM"}

MEASURED: dict[str, Any] = {"measure_steady_loss": True, "measure_prompts": True, "measure_likeness": True}


@pytest.fixture
def setup(demo_dir: Path, tmp_path: Path) -> RunSetup:
    host = StandaloneHost(None, None, tmp_path / "Lora", "cpu")
    return small_run_setup(host, demo_dir, tmp_path)


def test_a_run_on_a_rectified_flow_is_whole(setup: RunSetup) -> None:
    events = setup.run(**FLOW, **MEASURED, epochs=1, min_snr_gamma=5.0)
    assert ending(events) == "finished"
    assert any("SD1, rectified flow" in event.message for event in only(events, Noted))
    (written,) = only(events, LoraWritten)
    assert read_adapter(Path(written.path)).metadata["modelspec.prediction_type"] == "rectified_flow"
    values = {name: value for event in only(events, Measured) for name, value in event.values.items()}
    assert {DRIFT, OBEDIENCE, STEADY_LOSS} <= set(values)
    text = read_infotext(Path(only(events, SampleDrawn)[-1].path)) or ""
    assert "Sampler: Euler, " in text and "Schedule type: Simple, Shift: 1" in text
    assert read_sample_settings(Path(only(events, SampleDrawn)[-1].path)) is not None


def test_a_setting_without_a_meaning_ends_the_run_before_images_are_encoded(setup: RunSetup) -> None:
    with pytest.raises(ConfigError, match="rectified flow"):
        setup.run(**FLOW, noise_offset=0.05)


def test_the_plan_says_what_was_found_in_the_path(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "noob-rectified.safetensors", "sdxl", shallow=True)
    checked = check_checkpoint(TrainConfig(noise_offset=0.05), RunTarget(path, False, 4, "CPU", None))
    assert "SDXL, rectified flow (“rectified” in its path)" in checked.description
    assert [(problem.level, problem.where) for problem in checked.problems] == [("error", "noise_offset")]
    assert not check_checkpoint(TrainConfig(), RunTarget(EMBEDDED_CHECKPOINT, False, 4, "CPU", None)).problems


def write_log(folder: RunFolder, events: list[Any]) -> None:
    folder.log.write_text("".join(log_line(log_record(event)) for event in events), encoding="utf-8")


def test_whatever_names_the_sampler_names_the_one_that_drew(setup: RunSetup) -> None:
    """DDIM was chosen and Euler draws: the grid, its images, the plot and the settings to paste say so."""
    events = setup.run(**FLOW, test_strengths=True, sample_every_n_epochs=1)
    write_log(setup.folder, events)
    home, (first, *_) = setup.folder.root.parent, only(events, LoraWritten)
    task = find_grid_task(home, GridChoice())
    txt2img = start_txt2img(setup.host, task)
    assert txt2img.sampler == "Euler"
    assert make_sheet(task, model="tiny", sampler=txt2img.sampler).title.endswith(", Euler")
    drawn = txt2img.generate(task.request(task.rows[1], task.prompts[0])).infotext
    use = LoraUse(home, lambda: None, lambda _: None).use({"run": setup.folder.root.name, "path": first.path})[
        "settings"
    ]
    kept = [read_infotext(path) or "" for path in (setup.folder.root / "strengths").glob("*.png")]
    for text in (drawn, xyz_text(home), use, *kept):
        assert "Sampler: Euler, " in text and "Schedule type: Simple" in text and "DDIM" not in text


def test_a_run_keeps_its_prediction_type_when_its_file_is_renamed(setup: RunSetup, tmp_path: Path) -> None:
    """The resumed run, and whatever is drawn and measured of it later."""
    path = write_tiny_checkpoint(tmp_path / "noob-rectified.safetensors", "sdxl", shallow=True)
    values = {**NO_SAMPLES, **NOT_MEASURED, "checkpoint": str(path), "train_text_encoder": False, "max_steps": 2}
    setup.run(**values)
    assert read_identity(setup.folder).model["prediction_type"] == "rectified_flow"
    plain = path.rename(path.with_name("noob.safetensors"))
    config = setup.config.replace(**values).replace(checkpoint=str(plain), max_steps=3)
    state = setup.folder.saved_states()[2]
    events = list(trainer.run_training(config, setup.host, folder=setup.folder, control=Control(), state=state))
    notes = [event.message for event in only(events, Noted) if event.where == "prediction_type"]
    assert any("looks like epsilon now" in note and "started with rectified_flow" in note for note in notes)
    written = only(events, LoraWritten)[-1]
    assert read_adapter(Path(written.path)).metadata["modelspec.prediction_type"] == "rectified_flow"
    assert setup.host.load_model(read_past_config(setup.folder)).spec.prediction_type == "rectified_flow"


def test_a_model_is_not_read_again_to_look_at_its_own_run(setup: RunSetup) -> None:
    setup.run(**NO_SAMPLES, **NOT_MEASURED, max_steps=1)
    past = read_past_config(setup.folder)
    assert past.prediction_type == "epsilon" and setup.config.prediction_type == "auto"
    assert setup.host.load_model(setup.config) is setup.host.load_model(past)
    assert setup.host.run_target(past).is_loaded
