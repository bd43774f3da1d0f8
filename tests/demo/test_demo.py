"""The demo measures every epoch, writes its report, and fails if nothing was learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import GateError
from lib_lora_train.core.events import EpochDone, Event, Measured
from lib_lora_train.demo.demo import demo_config, run_demo


def test_demo_that_learnt_nothing_fails_and_still_writes_its_report(tmp_path: Path) -> None:
    quick = demo_config().replace(max_steps=1, learning_rate=1e-9, text_encoder_lr=1e-9, sample_steps=1)
    events: list[Event] = []
    with pytest.raises(GateError, match="concept") as error:
        for event in run_demo(tmp_path, Control(), config=quick):
            events.append(event)
    (path,) = tmp_path.glob("outputs/*/report.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert str(path) in str(error.value)
    assert report["passed"] is False and report["failures"]
    assert [row["epoch"] for row in report["epochs"]] == [0, 1]
    assert report["epochs"][0]["drift"] == 0.0
    # a learning rate of 1e-9 changes nothing, and the noise is fixed, so the losses are equal
    assert report["epochs"][1]["concept_loss"] == pytest.approx(report["epochs"][0]["concept_loss"], rel=1e-4)
    assert {"scan", "load", "latents", "train", "evaluate", "samples", "grid"} <= report["seconds"].keys()
    assert all(Path(file).is_file() for file in [*report["lora_files"], report["grid"]])


def test_stopped_demo_is_not_checked(tmp_path: Path) -> None:
    control = Control()
    quick = demo_config().replace(max_steps=2, sample_steps=1)
    measured = 0
    for event in run_demo(tmp_path, control, config=quick):
        measured += isinstance(event, Measured)
        if isinstance(event, Measured):
            control.stop()
        assert not isinstance(event, EpochDone)
    assert measured == 1
    (path,) = tmp_path.glob("outputs/*/report.json")
    assert json.loads(path.read_text(encoding="utf-8"))["passed"] is None
