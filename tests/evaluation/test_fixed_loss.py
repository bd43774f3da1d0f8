"""Images held out for validation: which ones, and what the loss on them means."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.dataset.plan import Plan, epoch_steps
from lib_lora_train.dataset.plan_text import describe_plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.sample_captions import fixed_caption_for
from lib_lora_train.dataset.scan import read_dataset
from lib_lora_train.dataset.validation_split import split_validation
from lib_lora_train.evaluation.fixed_loss import (
    MAX_STEADY_IMAGES,
    MAX_VALIDATION_IMAGES,
    STEADY_SHARE,
    STEADY_TIMESTEPS,
    FixedLoss,
    affordable_timesteps,
    loss_of_every_image,
    mean_loss,
    steady_epochs,
    steady_loss,
    validation_loss,
)
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latent_cache import LatentCache, Posterior
from lib_lora_train.models.text_encoding import encode_text, tokenize
from lib_lora_train.training.fixed_noise_loss import TIMESTEPS
from tests.stand_ins.tiny_models import alphas_of
from tests.stand_ins.training_parts import random_latents, shared_model, small_config, small_plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images to learn, two of them alike, and four for regularisation."""
    for name, count in (("10_zok", 10), ("reg", 4)):
        (tmp_path / name).mkdir()
        for number in range(count):
            shade = 20 * min(number, 8) + (5 if name == "reg" else 0)
            width = 64 if number % 2 else 128
            Image.new("RGB", (width, 64), (shade, 40, 90)).save(tmp_path / name / f"{number}.png")
            (tmp_path / name / f"{number}.txt").write_text(f"zok, {name}, number {number}", encoding="utf-8")
    return tmp_path


def config_of(folder: Path, **values: Any) -> TrainConfig:
    own = Concept(folder=str(folder / "10_zok"), trigger="zok", flip=True)
    reg = Concept(folder=str(folder / "reg"), is_regularisation=True)
    usual = {"resolution": 64, "min_bucket": 64, "max_bucket": 128, "bucket_step": 64, "validation_share": 0.25}
    return TrainConfig(concepts=(own, reg), **{**usual, **values})


def names(plan: Plan) -> set[str]:
    return {
        item.image.path.name
        for item in plan.dataset.items
        if not plan.is_regularisation(plan.dataset.items.index(item))
    }


def test_held_out_images_are_never_trained_on(folder: Path) -> None:
    config = config_of(folder)
    plan = make_plan(read_dataset(config), config)
    held = plan.validation
    assert held
    assert len(names(held)) == 2  # a quarter of nine different images
    assert not names(held) & names(plan)
    shown = {item for epoch in (1, 2) for step in epoch_steps(plan, 1, epoch) for batch in step for item in batch.items}
    hashes = {plan.dataset.items[item].image.content_hash for item in shown}
    assert not hashes & {item.image.content_hash for item in held.dataset.items}
    assert len(held.views) == len(held.dataset.items)  # one view of each, though the folder is mirrored too
    assert "kept for validation" in describe_plan(plan)
    assert [problem.where for problem in plan.warnings if "not trained on" in problem.message] == ["validation_share"]


def test_identical_images_are_on_the_same_side_of_the_split(folder: Path) -> None:
    dataset = read_dataset(config_of(folder))
    for seed in range(20):
        own, held = split_validation(dataset, 0.4, seed)
        assert not {i.image.content_hash for i in own.items} & {i.image.content_hash for i in held.items}
        assert len(own.items) + len(held.items) == len(dataset.items)
        assert [c.image_count for c in own.concepts][1] == 4  # regularisation stays whole


def test_the_split_depends_only_on_seed_and_contents(folder: Path) -> None:
    dataset = read_dataset(config_of(folder))
    held = split_validation(dataset, 0.25, 1)[1]
    (folder / "10_zok").rename(folder / "10_moved")
    config = config_of(folder)
    moved = config.replace(
        concepts=(dataclasses.replace(config.concepts[0], folder=str(folder / "10_moved")), config.concepts[1])
    )
    again = split_validation(read_dataset(moved), 0.25, 1)[1]
    assert [i.image.content_hash for i in held.items] == [i.image.content_hash for i in again.items]
    assert len({split_validation(dataset, 0.25, seed)[1].items for seed in range(10)}) > 1


def test_without_validation_split_nothing_changes(folder: Path) -> None:
    config = config_of(folder, validation_share=0.0)
    dataset = read_dataset(config)
    plan = make_plan(dataset, config)
    assert plan.validation is None
    assert plan.dataset.items == dataset.items


def test_a_single_image_is_not_held_out_and_a_warning_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "only.png")
    config = TrainConfig(concepts=(Concept(folder=str(tmp_path)),), resolution=64, min_bucket=64, validation_share=0.5)
    plan = make_plan(read_dataset(config), config)
    assert plan.validation is None
    assert any("only one image" in problem.message for problem in plan.warnings)


def test_captions_are_the_same_each_time(folder: Path) -> None:
    values = {"shuffle_captions": True, "caption_dropout": 0.9, "tag_dropout": 0.9, "caption_wildcards": True}
    config = config_of(folder, caption_prefix="best", **values)
    held = make_plan(read_dataset(config), config).validation
    assert held
    assert fixed_caption_for(held, 0, config) == f"best {held.dataset.items[0].caption}"


def stores(plan: Plan, model: DiffusionModel, *, masked: bool = False) -> LatentCache:
    entries = {}
    for item, place in enumerate(plan.placements):
        generator = torch.Generator().manual_seed(item)
        mean = torch.randn((4, place.height // 8, place.width // 8), generator=generator)
        mask = (torch.rand(mean.shape[1:], generator=generator) > 0.5).float() if masked else None
        entries[item] = Posterior(mean, torch.ones_like(mean), mask)
    return LatentCache(entries, frozenset())


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_the_mean_over_images_and_timesteps(architecture: Any, masked: bool, folder: Path) -> None:
    """Sample by sample, in float64 from the UNet's prediction on: fp32 sums in another order agree to 1e-5."""
    model = shared_model(architecture)
    config = config_of(folder, batch_size=3, train_text_encoder=False)
    plan = make_plan(read_dataset(config), config).validation
    assert plan
    latents = stores(plan, model, masked=masked)
    validation = validation_loss(plan, latents, config)
    breaths: list[None] = []
    value = mean_loss(validation.measure(model, lambda: breaths.append(None)))
    wanted = [
        _error(validation, model, plan, latents, (item, t), config)
        for item in range(len(plan.placements))
        for t in TIMESTEPS
    ]
    assert value == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)
    assert len(breaths) >= -(-len(wanted) // 3)
    assert mean_loss(validation.measure(model, lambda: None)) == value


@pytest.mark.parametrize(("count", "measured"), [(1, 1), (40, 40), (41, 21), (101, 34)])
def test_at_most_forty_images_are_measured_spread_evenly_from_the_first(count: int, measured: int) -> None:
    config = small_config(batch_size=3)
    plan = small_plan(config, sizes=[(64, 64)] * count)
    batches = list(validation_loss(plan, random_latents(plan), config)._batches())
    samples = [sample for batch in batches for sample in batch]
    items = list(dict.fromkeys(item for item, _ in samples))
    stride = items[1] - items[0] if count > 1 else 1
    assert items == list(range(0, count, stride)) and len(items) == measured <= MAX_VALIDATION_IMAGES
    assert samples == [(item, timestep) for item in items for timestep in TIMESTEPS]
    assert {len(batch) for batch in batches[:-1]} <= {3} and len(batches[-1]) <= 3


def test_the_steady_loss_is_of_the_same_images_and_noise_in_every_run(folder: Path) -> None:
    """Another seed, other settings or one image less change nothing for the images that stay."""
    config = config_of(folder, validation_share=0.0, train_text_encoder=False)
    model, plan = shared_model("sd1"), make_plan(read_dataset(config), config)

    def by_name(config: TrainConfig) -> dict[str, float]:
        plan = make_plan(read_dataset(config), config)
        entries = {
            item: _posterior_of(one.image.content_hash, plan, item) for item, one in enumerate(plan.dataset.items)
        }
        measured = steady_loss(plan, LatentCache(entries, frozenset()), config)
        assert measured
        values = measured.measure(model, lambda: None)
        return {plan.dataset.items[item].image.path.name: value for item, value in values.items()}

    first = by_name(config)
    assert 1 <= len(first) <= MAX_STEADY_IMAGES
    assert not any(plan.is_regularisation(item) for item in steady_loss(plan, stores(plan, model), config).items)  # type: ignore[union-attr]
    assert by_name(config.replace(seed=99, batch_size=3, learning_rate=1.0)) == pytest.approx(first, rel=1e-5)
    gone = next(iter(first))
    (folder / "10_zok" / gone).unlink()
    again = by_name(config)
    assert {name: again[name] for name in first if name != gone} == pytest.approx(
        {name: value for name, value in first.items() if name != gone}, rel=1e-5
    )


def test_no_steady_loss_without_images_to_learn(folder: Path) -> None:
    config = config_of(folder, validation_share=0.0)
    plan = make_plan(read_dataset(config), config)
    assert steady_loss(plan, LatentCache({}, frozenset()), config) is None


@pytest.mark.parametrize("count", [1, 2, 5, 30, 1000])
@pytest.mark.parametrize("repeats", [1, 10, 100])
def test_the_steady_loss_takes_at_most_its_share_of_the_training(count: int, repeats: int) -> None:
    """A training step is about 2.8 passes of the UNet per image."""
    config = small_config()
    plan = small_plan(config, sizes=[(64, 64)] * count, repeats=repeats)
    measured = steady_loss(plan, random_latents(plan), config)
    assert measured
    passes = len(measured.items) * len(STEADY_TIMESTEPS)
    assert passes <= STEADY_SHARE * 2.8 * plan.samples_per_epoch * steady_epochs(plan) + 1e-9


@pytest.mark.parametrize(
    ("count", "repeats", "images", "epochs"),
    [(2, 1, 2, 36), (5, 40, 5, 1), (150, 1, 4, 1), (1000, 1, 9, 1), (30, 1, 3, 4)],
)
def test_the_steady_loss_is_of_three_to_nine_images_as_its_share_allows(
    count: int, repeats: int, images: int, epochs: int
) -> None:
    """Of 200 samples in an epoch, 3% are 16.8 passes: 5 images at 3 timesteps, after every epoch."""
    plan = small_plan(small_config(), sizes=[(64, 64)] * count, repeats=repeats)
    measured = steady_loss(plan, random_latents(plan), small_config())
    assert measured and len(measured.items) == images
    assert steady_epochs(plan) == epochs


def test_measuring_keeps_no_activations(folder: Path) -> None:
    model, config = shared_model("sd1"), config_of(folder, validation_share=0.0, train_text_encoder=False)
    plan = make_plan(read_dataset(config), config)
    losses = steady_loss(plan, stores(plan, model), config)
    assert losses
    seen: list[bool] = []
    with torch.enable_grad():
        handle = model.unet.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
        losses.measure(model, lambda: None)
        handle.remove()
    assert seen and not any(seen)


@pytest.mark.parametrize("count", [1, 5, 30])
@pytest.mark.parametrize(("epochs", "timesteps"), [(1, 0), (71, 0), (72, 2), (107, 2), (108, 3), (500, 3)])
def test_every_image_is_measured_at_as_many_timesteps_as_its_share_allows(
    count: int, epochs: int, timesteps: int
) -> None:
    plan = small_plan(small_config(epochs=epochs, batch_size=1), sizes=[(64, 64)] * count, repeats=1)
    found = affordable_timesteps(plan, 3)
    assert len(found) == timesteps
    losses = loss_of_every_image(plan, random_latents(plan), small_config(), found)
    assert losses and 3 * losses.samples <= STEADY_SHARE * 2.8 * count * epochs


def test_the_loss_of_every_image_is_its_steady_loss(folder: Path) -> None:
    config = config_of(folder, validation_share=0.0, train_text_encoder=False)
    model, plan = shared_model("sd1"), make_plan(read_dataset(config), config)
    latents = stores(plan, model)
    every, steady = loss_of_every_image(plan, latents, config), steady_loss(plan, latents, config)
    assert every and steady and len(every.items) == 10 > len(steady.items)
    found = every.measure(model, lambda: None)
    assert {item: found[item] for item in steady.items} == pytest.approx(steady.measure(model, lambda: None), rel=1e-5)


def test_without_captions_the_loss_is_that_of_an_empty_caption(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, validation_share=0.0, train_text_encoder=False)
    model, plan = shared_model("sd1"), make_plan(read_dataset(config), config)
    latents = stores(plan, model)
    losses = steady_loss(plan, latents, config)
    assert losses
    work = losses.measure_in_turns(model, captioned=False)
    done = []
    while True:
        try:
            done.append(next(work))
        except StopIteration as end:
            found = end.value
            break
    assert done[-1] == losses.samples and done == sorted(done)
    monkeypatch.setattr("lib_lora_train.evaluation.fixed_loss.fixed_caption_for", lambda *_: "")
    wanted = losses.measure(model, lambda: None)
    assert {item: sum(each) / len(each) for item, each in found.items()} == pytest.approx(wanted, rel=1e-5)


def _posterior_of(content: str, plan: Plan, item: int) -> Posterior:
    """A latent that depends on the image's contents alone."""
    generator = torch.Generator().manual_seed(int(content[:8], 16))
    place = plan.placements[item]
    mean = torch.randn((4, place.height // 8, place.width // 8), generator=generator)
    return Posterior(mean, torch.ones_like(mean))


def _error(
    validation: FixedLoss,
    model: DiffusionModel,
    plan: Plan,
    latents: LatentCache,
    sample: tuple[int, int],
    config: TrainConfig,
) -> float:
    item, timestep = sample
    posterior = latents[item]
    clean = posterior.mean[None] * model.spec.scale_factor
    noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(validation._seed_of(*sample)))[None]
    alpha = alphas_of(model)[timestep].double()
    noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).float()
    place, image = plan.placements[item], plan.dataset.items[item].image
    condition = encode_text(model, tokenize(model, [plan.dataset.items[item].caption], 1), config.clip_skip)
    added = None
    if condition.pooled is not None:
        sizes = [[image.height, image.width, place.top, place.left, place.height, place.width]]
        added = {"text_embeds": condition.pooled, "time_ids": torch.tensor(sizes).float()}
    with torch.no_grad():
        answer = model.unet(noisy, timestep, encoder_hidden_states=condition.hidden, added_cond_kwargs=added).sample
    target = (
        noise.double()
        if model.schedule.prediction_type == "epsilon"
        else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    )
    squares = (answer.double() - target.double()).square()[0].mean(dim=0)
    mask = torch.ones_like(squares) if posterior.mask is None else posterior.mask.double()
    return float((squares * mask).sum() / mask.sum())
