"""The likeness of samples, measured during a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lib_lora_train.config.sample_prompts import SamplePrompt, sample_prompts
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.events import LIKENESS, Measured, Noted, PhaseStarted, SampleDrawn
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.sample_likeness import sample_likeness
from lib_lora_train.runs.trainer import run_training
from lib_lora_train.training.control import Control
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, ending, only, small_run_setup


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def small_run(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path) -> RunSetup:
    return small_run_setup(shared_host, demo_dir, tmp_path)


def _prompts(*texts: str) -> list[SamplePrompt]:
    return list(sample_prompts(TrainConfig(sample_prompts=texts)))


def test_a_run_measures_the_likeness_of_its_samples_after_every_epoch(small_run: RunSetup) -> None:
    events = small_run.run(measure_likeness=True, save_state=True)
    values = {event.epoch: event.values for event in only(events, Measured)}
    assert sorted(values) == [1, 2] and all(set(named) == {LIKENESS} for named in values.values())
    assert (small_run.folder.root.parent / "features").is_dir()
    assert len(only(events, SampleDrawn)) == 6


def test_a_run_trains_the_same_weights_whether_likeness_is_measured_or_not(small_run: RunSetup) -> None:
    small_run.run(measure_likeness=True, output_name="with")
    small_run.run(measure_likeness=False, output_name="without")
    found = [load_file(small_run.host.lora_dir / f"{name}-000002.safetensors") for name in ("with", "without")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_nothing_is_measured_without_samples_or_unless_asked_for(small_run: RunSetup) -> None:
    assert not only(small_run.run(), Measured)
    assert not only(small_run.run(measure_likeness=True, **NO_SAMPLES), Measured)


def test_only_prompts_with_a_trigger_are_compared_and_all_of_them_if_none_has_one(small_run: RunSetup) -> None:
    plan = plan_run(small_run.config).plan
    prompts = _prompts("a fox", "a ZORP on grass", "zorp")
    assert list(sample_likeness(plan, prompts, small_run.config, None).places) == [1, 2]
    without_trigger = TrainConfig(concepts=(Concept("a"),))
    assert list(sample_likeness(plan, prompts, without_trigger, None).places) == [0, 1, 2]


def test_training_images_that_are_gone_are_left_out_and_none_at_all_is_no_failure(small_run: RunSetup) -> None:
    plan = plan_run(small_run.config).plan
    measure = sample_likeness(plan, _prompts("zorp"), small_run.config, None)
    row = [Image.new("RGB", (128, 128), "red")]
    for item in plan.dataset.items:
        item.image.path.unlink()
    with small_run.host.lease() as model:
        assert measure.measure(model, row, row, lambda: None) == {}


def test_others_may_use_the_model_after_every_pass_and_stop_takes_effect_there(
    small_run: RunSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image a pass, as for images of 512 px and more: (3 training images + 1 + 1 samples) × 3 passes."""
    monkeypatch.setattr("lib_lora_train.evaluation.features._BATCH_PX", 1)
    plan, passes = plan_run(small_run.config).plan, 0
    row = [Image.new("RGB", (128, 128), colour) for colour in ("red", "blue")]

    def count() -> None:
        nonlocal passes
        passes += 1

    with small_run.host.lease() as model:
        sample_likeness(plan, _prompts("zorp"), small_run.config, None).measure(model, row[:1], row[1:], count)
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
