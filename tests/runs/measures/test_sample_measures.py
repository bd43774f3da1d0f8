"""The samples of a run, compared with its training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import Measured, Noted, PhaseStarted, SampleDrawn, SampleMatched
from lib_lora_train.core.measures import COPIES, DIVERSITY, LIKENESS
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.measures.sample_measures import MAX_SAMPLES, SampleMeasures, sample_measures
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.trainer import run_training
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, ending, only, small_run_setup


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def small_run(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> RunSetup:
    return small_run_setup(shared_host, demo_dir, tmp_path)


def test_a_run_measures_the_likeness_of_its_samples_after_every_epoch(small_run: RunSetup) -> None:
    prompts = ("zorp --s 1 --l 1", "zorp, red sky --s 1 --l 1", "fox --s 1 --l 1")
    events = small_run.run(measure_likeness=True, save_state=True, sample_prompts=prompts)
    values = {event.epoch: event.values for event in only(events, Measured)}
    assert sorted(values) == [1, 2] and all({COPIES, DIVERSITY} <= set(named) for named in values.values())
    assert any(LIKENESS in named for named in values.values())
    matched = only(events, SampleMatched)
    drawn = {event.path for event in only(events, SampleDrawn)}
    assert {event.sample for event in matched} <= drawn and {event.epoch for event in matched} == {1, 2}
    assert all(Path(event.image).is_file() and event.similarity <= 1 for event in matched)
    assert (small_run.folder.root.parent / "features").is_dir()
    assert len(only(events, SampleDrawn)) == 9 and len(matched) == 4


def test_a_run_trains_the_same_weights_whether_likeness_is_measured_or_not(small_run: RunSetup) -> None:
    small_run.run(measure_likeness=True, output_name="with")
    small_run.run(measure_likeness=False, output_name="without")
    found = [load_file(small_run.host.lora_dir / f"{name}-000002.safetensors") for name in ("with", "without")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_nothing_is_measured_without_samples_or_unless_asked_for(small_run: RunSetup) -> None:
    assert not only(small_run.run(), Measured)
    assert not only(small_run.run(measure_likeness=True, **NO_SAMPLES), Measured)


def _measures(setup: RunSetup, *texts: str, **values: Any) -> SampleMeasures:
    config = setup.config.replace(sample_prompts=texts, **values)
    return sample_measures(plan_run(setup.config).plan, config, setup.folder)


def test_only_prompts_with_a_trigger_are_compared_and_all_of_them_if_none_has_one(small_run: RunSetup) -> None:
    assert list(_measures(small_run, "a fox", "a ZORP on grass", "zorp").places) == [1, 2]
    assert list(_measures(small_run, "a", "b", "c", concepts=(Concept("a"),)).places) == [0, 1, 2]
    assert len(_measures(small_run, *["zorp"] * 9).places) == MAX_SAMPLES


def test_training_images_that_are_gone_are_left_out_and_none_at_all_is_no_failure(small_run: RunSetup) -> None:
    measure = _measures(small_run, "zorp")
    row = [Image.new("RGB", (128, 128), "red")]
    for item in measure.plan.dataset.items:
        item.image.path.unlink()
    with small_run.host.lease() as model:
        found = measure.measure(model, {0: row, 1: row}, 1, lambda: None)
    assert not found.values and not found.matches


def test_others_may_use_the_model_after_every_pass_and_stop_takes_effect_there(
    small_run: RunSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image a pass, as for images of 512 px and more: (3 training images + 1 + 1 samples) × 3 passes."""
    monkeypatch.setattr("lib_lora_train.evaluation.features._BATCH_PX", 1)
    passes = 0
    row = [Image.new("RGB", (128, 128), colour) for colour in ("red", "blue")]

    def count() -> None:
        nonlocal passes
        passes += 1

    with small_run.host.lease() as model:
        _measures(small_run, "zorp").measure(model, {0: row[:1], 1: row[1:]}, 1, count)
    assert passes == (3 + 1 + 1) * 3

    control = Control()
    events = []
    for event in run_training(
        small_run.config.replace(measure_likeness=True), small_run.host, folder=small_run.folder, control=control
    ):
        events.append(event)
        if event == PhaseStarted("evaluate", 0):
            control.stop()
    assert not only(events, Measured) and ending(events) == "stopped"


def test_full_memory_while_measuring_does_not_end_the_run(small_run: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("lib_lora_train.evaluation.feature_cache.image_features", full)
    events = small_run.run(measure_likeness=True)
    assert ending(events) == "finished" and not only(events, Measured)
    warnings = [event.message for event in only(events, Noted) if "was not measured" in event.message]
    assert [text.split(" was")[0] for text in warnings] == ["Epoch 1", "Epoch 2"]
