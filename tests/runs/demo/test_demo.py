"""The demo measures every epoch, writes its report, and fails if nothing was learnt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import GateError
from lib_lora_train.core.events import Advised, EpochDone, Event, Measured, StrengthTested
from lib_lora_train.runs.demo import demo
from lib_lora_train.runs.demo.demo import Report, demo_config, run_demo
from lib_lora_train.runs.records.folder import new_run_folder
from tests.stand_ins.run_parts import NOT_MEASURED


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The demo with four images of each of its folders, two prompts with samples of one step, and its own measures."""
    config = demo_config()
    concepts = []
    for concept in config.concepts:
        (source,) = Path(concept.folder).iterdir()
        folder = tmp_path_factory.mktemp("few") / source.name
        folder.mkdir()
        for path in sorted(source.iterdir())[:8]:  # an image and its caption have neighbouring names
            shutil.copy(path, folder)
        concepts.append(replace(concept, folder=str(folder.parent)))
    few = config.replace(concepts=tuple(concepts), sample_prompts=config.sample_prompts[:2], sample_steps=1)
    return few.replace(**NOT_MEASURED)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch is measured on samples of two prompts instead of ten."""
    for name in ("CONCEPT_PROMPTS", "CONTROL_PROMPTS"):
        monkeypatch.setattr(f"lib_lora_train.runs.demo.demo.{name}", getattr(demo, name)[:1])


def test_demo_that_learnt_nothing_fails_and_still_writes_its_report(quick: TrainConfig, tmp_path: Path) -> None:
    slow = quick.replace(max_steps=1, learning_rate=1e-9, text_encoder_lr=1e-9)
    events: list[Event] = []
    with pytest.raises(GateError, match="concept") as error:
        for event in run_demo(tmp_path, Control(), config=slow):
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


def test_stopped_demo_is_not_checked(quick: TrainConfig, tmp_path: Path) -> None:
    control = Control()
    measured = 0
    for event in run_demo(tmp_path, control, config=quick.replace(max_steps=2)):
        measured += isinstance(event, Measured)
        if isinstance(event, Measured):
            control.stop()
        assert not isinstance(event, EpochDone)
    assert measured == 1
    (path,) = tmp_path.glob("outputs/*/report.json")
    assert json.loads(path.read_text(encoding="utf-8"))["passed"] is None


def test_the_report_has_the_trials_and_the_advice(tmp_path: Path) -> None:
    report = Report(demo_config())
    report.record(StrengthTested(1, 1.25, (0.5,), (0.25,), 1.0))
    report.record(Advised(1, 1.25, False, ("It is the most like.",)))
    folder = new_run_folder(tmp_path, "demo")
    folder.root.mkdir(parents=True, exist_ok=True)
    report.write(folder, None)
    written = json.loads(folder.report.read_text(encoding="utf-8"))
    assert [(trial["strength"], trial["likeness"]) for trial in written["trials"]] == [(1.25, [0.5])]
    assert written["advice"]["epoch"] == 1 and written["advice"]["reasons"] == ["It is the most like."]
