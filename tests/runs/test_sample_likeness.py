"""The likeness of samples, measured during a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lib_lora_train.config.sample_prompts import SamplePrompt, sample_prompts
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.events import LIKENESS, Measured, SampleDrawn
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.sample_likeness import sample_likeness
from tests.stand_ins.run_parts import RunSetup, only, small_run_setup


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
    assert not only(small_run.run(measure_likeness=True, sample_prompts=()), Measured)


def test_only_prompts_with_a_trigger_are_compared_and_all_of_them_if_none_has_one(small_run: RunSetup) -> None:
    plan = plan_run(small_run.config).plan
    prompts = _prompts("a fox", "a ZORP on grass", "zorp")
    with_trigger = sample_likeness(plan, prompts, ("zorp",), clip_skip=1, folder=None)
    assert list(with_trigger.places) == [1, 2]
    assert list(sample_likeness(plan, prompts, ("blorb",), clip_skip=1, folder=None).places) == [0, 1, 2]


def test_training_images_that_are_gone_are_left_out_and_none_at_all_is_no_failure(small_run: RunSetup) -> None:
    plan = plan_run(small_run.config).plan
    measure = sample_likeness(plan, _prompts("zorp"), ("zorp",), clip_skip=1, folder=None)
    row = [Image.new("RGB", (128, 128), "red")]
    for item in plan.dataset.items:
        item.image.path.unlink()
    with small_run.host.lease() as model:
        assert measure.measure(model, row, row, lambda: None) == {}
