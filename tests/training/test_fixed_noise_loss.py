"""The probe's numbers are reproducible and mean what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import scan_dataset
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache, Posterior
from lib_lora_train.models.latents import encode_dataset
from lib_lora_train.runs.demo.demo import Gate, demo_config
from lib_lora_train.training.fixed_noise_loss import TIMESTEPS, Probe, drift, make_probe, probe_loss, probe_predictions
from tests.stand_ins.training_parts import random_latents, shared_model, small_config, small_plan


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionModel:
    with StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu").lease() as model:
        return model


@pytest.fixture(scope="module")
def probe(model: DiffusionModel, demo_dir: Path) -> Probe:
    config = TrainConfig(concepts=(Concept(folder=str(demo_dir / "holdout" / "base")),), resolution=128, min_bucket=64)
    plan = make_plan(scan_dataset(config.concepts, ".txt"), config)
    encoding = encode_dataset(model, plan, None)
    while True:
        try:
            next(encoding)
        except StopIteration as end:
            return make_probe(model, plan, end.value, seed=1)


def test_a_probe_has_every_image_at_every_timestep(probe: Probe) -> None:
    assert probe.latents.shape == (8 * len(TIMESTEPS), 4, 16, 16)
    assert probe.timesteps[: len(TIMESTEPS)].tolist() == list(TIMESTEPS)
    assert len(set(probe.captions)) == 8


@pytest.mark.parametrize(("architecture", "factor"), [("sd1", 0.18215), ("sdxl", 0.13025)])
def test_a_probe_scales_latents_as_the_model_was_trained(architecture: Any, factor: float) -> None:
    plan = small_plan(small_config())
    latents = random_latents(plan)
    made = make_probe(shared_model(architecture), plan, latents, seed=1, timesteps=(7,))
    expected = torch.stack([latents[item].mean for item in range(4)]) * factor
    assert torch.allclose(made.latents, expected, rtol=1e-6)  # one float32 product


def test_a_probe_refuses_images_of_two_sizes() -> None:
    plan = small_plan(small_config())
    latents = random_latents(plan)
    entries = {item: latents[item] for item in range(len(latents))}
    cut = Posterior(entries[0].mean[:, :-1], entries[0].std[:, :-1])
    with pytest.raises(ValueError, match="images of one size"):
        make_probe(shared_model("sd1"), plan, LatentCache({**entries, 0: cut}, frozenset()), seed=1)


def test_the_loss_is_the_mean_squared_distance_to_the_noise(model: DiffusionModel, probe: Probe) -> None:
    """For an epsilon model the target is the noise itself, so answering with it is perfect and with 0 costs E[n²]."""
    assert probe_loss(model, probe, probe.noise) == 0.0
    assert probe_loss(model, probe, torch.zeros_like(probe.noise)) == pytest.approx(1.0, abs=0.03)


def test_predictions_do_not_change_between_calls(model: DiffusionModel, probe: Probe) -> None:
    assert torch.equal(probe_predictions(model, probe, clip_skip=1), probe_predictions(model, probe, clip_skip=1))


def test_the_model_predicts_and_its_captions_help(model: DiffusionModel, probe: Probe) -> None:
    captioned = probe_loss(model, probe, probe_predictions(model, probe, clip_skip=1))
    uncaptioned = probe_loss(model, probe, probe_predictions(model, probe, clip_skip=1, captioned=False))
    assert captioned < 0.5
    assert captioned < uncaptioned


def test_drift_is_zero_unchanged_and_one_as_far_as_without_captions() -> None:
    before, uncaptioned = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])
    assert drift(before, before, uncaptioned) == 0.0
    assert drift(torch.tensor([1.0, 1.0]), before, uncaptioned) == 1.0


def test_drift_is_a_ratio_of_distances() -> None:
    """From (1, 2) to (4, 6) it is 5, to (1, −8) it is 10."""
    before, after, uncaptioned = (torch.tensor(point) for point in ((1.0, 2.0), (4.0, 6.0), (1.0, -8.0)))
    assert drift(after, before, uncaptioned) == 0.5


GOOD = {"concept_share": 0.9, "leak_share": 0.0, "concept_loss": 0.4, "base_loss": 1.0}
BEFORE = {"concept_share": 0.0, "leak_share": 0.0, "concept_loss": 1.0, "base_loss": 1.0}


def test_the_gate_passes_a_good_run() -> None:
    assert Gate().failures(BEFORE, GOOD) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("concept_share", 0.2), ("leak_share", 0.5), ("concept_loss", 0.95), ("base_loss", 1.5)],
)
def test_the_gate_names_the_failed_criterion(name: str, value: float) -> None:
    assert len(Gate().failures(BEFORE, {**GOOD, name: value})) == 1


def test_the_demos_own_settings_are_accepted() -> None:
    assert [problem for problem in validate(demo_config()) if problem.level == "error"] == []
