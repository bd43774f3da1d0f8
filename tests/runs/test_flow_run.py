"""A whole run on a rectified flow: recognised, trained, measured, drawn, written and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.core.events import LoraWritten, Measured, Noted, SampleDrawn
from lib_lora_train.core.measures import DRIFT, OBEDIENCE, STEADY_LOSS
from lib_lora_train.hosts.host import RunTarget
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.runs.checkpoint_check import check_checkpoint
from lib_lora_train.sampling.infotext import read_infotext, read_sample_settings
from tests.stand_ins.run_parts import RunSetup, ending, only, small_run_setup
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
