"""Presets by card fit the memory forecast of the published models, and the card found chooses among them."""

from __future__ import annotations

import dataclasses
from math import prod

import pytest

from lib_lora_train.config.card_presets import CARD_PRESETS, CardPreset, find_card_preset, smallest_card
from lib_lora_train.config.presets import find_preset
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.models.architecture import UNET_PREFIX, VAE_PREFIX
from lib_lora_train.models.infer_spec import infer_spec
from lib_lora_train.runs.estimates.memory import CheckpointSizes, estimate_memory
from tests.stand_ins.tiny_anima import PREFIX, PUBLISHED, transformer_shapes
from tests.stand_ins.tiny_models import full_shapes
from tests.stand_ins.training_parts import small_plan

GIB = 2**30
RANK = 32
ALL = pytest.mark.parametrize("preset", CARD_PRESETS, ids=lambda preset: preset.name)


def full_model(architecture: str) -> CheckpointSizes:
    """A checkpoint of the published size in 16 bit."""
    if architecture == "anima":
        shapes = {PREFIX + name: shape for name, shape in transformer_shapes(PUBLISHED)}
    else:
        shapes = full_shapes(architecture)  # type: ignore[arg-type]
    unet = sum(prod(shape) for name, shape in shapes.items() if name.startswith(UNET_PREFIX))
    vae = sum(prod(shape) for name, shape in shapes.items() if name.startswith(VAE_PREFIX))
    text = sum(map(prod, shapes.values())) - unet - vae
    return CheckpointSizes(infer_spec(shapes), (unet, 2 * unet), (text, 2 * text), (vae, 2 * vae))


def needed(preset: CardPreset, **values: object) -> float:
    """The forecast in GiB for square images."""
    config = TrainConfig(precision="bf16", rank=RANK).replace(**{**preset.values, **values})
    plan = small_plan(TrainConfig())
    side = config.resolution
    bucket = dataclasses.replace(plan.buckets[0], width=side, height=side, sample_count=64)
    plan = dataclasses.replace(plan, batch_size=config.batch_size, buckets=(bucket,))
    return estimate_memory(full_model(preset.architecture), config, plan).total / GIB


@ALL
def test_a_card_preset_fits_nine_tenths_of_its_card(preset: CardPreset) -> None:
    assert needed(preset) <= 0.9 * preset.gigabytes


@ALL
def test_a_card_preset_uses_its_card(preset: CardPreset) -> None:
    """Twice the images per step would not fit, or the next larger card does that."""
    larger = [other for other in CARD_PRESETS if other.architecture == preset.architecture]
    is_largest = preset is larger[-1]
    assert needed(preset) > 0.5 * preset.gigabytes
    if is_largest:
        assert needed(preset, batch_size=2 * preset.values["batch_size"]) > preset.gigabytes


@ALL
def test_a_card_preset_is_found_by_its_name(preset: CardPreset) -> None:
    assert find_preset(preset.name.lower().replace(" ", "-")).values == preset.values


@pytest.mark.parametrize(
    ("architecture", "gib", "name"),
    [
        ("sd1", 5.8, "SD1 on 6 GB"),
        ("sd1", 7.6, "SD1 on 8 GB"),
        ("sd1", 10.0, "SD1 on 8 GB"),
        ("sd1", 80.0, "SD1 on 24 GB"),
        ("sdxl", 7.6, "SDXL on 8 GB"),
        ("sdxl", 11.0, "SDXL on 8 GB"),
        ("sdxl", 11.6, "SDXL on 12 GB"),
        ("sdxl", 23.6, "SDXL on 24 GB"),
        ("sdxl", 6.0, None),
        ("sd1", 4.0, None),
        ("sd2", 24.0, None),
        ("anima", 5.8, "Anima on 6 GB"),
        ("anima", 11.6, "Anima on 12 GB"),
    ],
)
def test_the_card_found_chooses_the_largest_preset_that_fits_it(
    architecture: str, gib: float, name: str | None
) -> None:
    """Cards report up to 7% less than their name says."""
    found = find_card_preset(architecture, round(gib * GIB))
    assert (found.name if found else None) == name


def test_the_smallest_card_is_known() -> None:
    assert [smallest_card(architecture) for architecture in ("sd1", "sdxl", "sd2", "anima")] == [6, 8, 0, 6]
