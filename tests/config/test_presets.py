"""Presets: the guides' advice is valid, says when to use it, and changes nothing else."""

from __future__ import annotations

import itertools
import re

import pytest

from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.presets import FAMILY_PRESETS, PRESETS, Preset, find_preset, likeness
from lib_lora_train.config.settings.network import FAMILIES
from lib_lora_train.config.settings.optimizer import OPTIMIZERS
from lib_lora_train.config.train_config import Concept, TrainConfig, config_values, read_config
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import LoraTrainError
from tests.paths import ROOT

BASE = TrainConfig(concepts=(Concept("cats", trigger="zkw"),), sample_prompts=("zkw on a hill",))
NAMES = [preset.name for preset in PRESETS]
DOUBTED = ("IA3", "Diag-OFT", "BOFT", "Native")  # Forge ignores the first three; the last needs gigabytes
PURPOSES = ["Character", "Style", "Concept", "Likeness", "Multi-concept"]


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_a_preset_is_valid_and_nothing_speaks_against_it(preset: Preset) -> None:
    config, problems = read_config({**config_values(BASE), **preset.values})
    assert problems == ()
    assert config == BASE.replace(**preset.values), "values are of the declared types"
    spoken = [problem for problem in validate(config) if problem.level != "hint"]
    if preset.name in DOUBTED:
        assert [(problem.level, problem.where) for problem in spoken] == [("warning", "family")]
    else:
        assert spoken == []


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_a_preset_says_in_one_sentence_when_to_use_it(preset: Preset) -> None:
    assert re.fullmatch(r"For [^.!?]+\.", preset.when)


@pytest.mark.parametrize(("purpose", "machine"), itertools.product(PURPOSES, ["SDXL", "Low VRAM"]))
def test_a_purpose_and_a_machine_go_together(purpose: str, machine: str) -> None:
    for names in ((purpose, machine), (purpose, "Prodigy", machine), (purpose, "Prodigy fast", machine)):
        values = {name: value for chosen in names for name, value in find_preset(chosen).values.items()}
        assert [problem for problem in validate(BASE.replace(**values)) if problem.level != "hint"] == []


def test_every_family_has_a_preset_and_each_takes_anothers_settings_back() -> None:
    shared = set(FAMILY_PRESETS[0].values)
    extra = {"batch_size", "gradient_accumulation"}  # DyLoRA's, which suit every family
    assert {preset.values["family"] for preset in FAMILY_PRESETS} == set(FAMILIES)
    assert all(shared <= set(preset.values) <= shared | extra for preset in FAMILY_PRESETS)


@pytest.mark.parametrize("machine", ["SDXL", "Low VRAM"])
@pytest.mark.parametrize("preset", FAMILY_PRESETS, ids=lambda preset: preset.name)
def test_a_kind_and_a_machine_go_together(preset: Preset, machine: str) -> None:
    config = BASE.replace(**{**preset.values, **find_preset(machine).values})
    found = [problem for problem in validate(config) if problem.level != "hint"]
    assert [problem.where for problem in found] == (["family"] if preset.name in DOUBTED else [])


def test_both_sets_of_prodigys_arguments_are_there() -> None:
    """The two that guides and colabs pass on: careful (0.8, 0.99) and fast (2, 0.999); all else is the same."""
    careful, fast = (
        parse_optimizer_args(find_preset(name).values["optimizer_args"]) for name in ("prodigy", "prodigyfast")
    )
    common = {"decouple": True, "weight_decay": 0.01, "use_bias_correction": True, "safeguard_warmup": True}
    assert careful == {**common, "d_coef": 0.8, "betas": (0.9, 0.99)}
    assert fast == {**common, "d_coef": 2, "betas": (0.9, 0.999)}


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_purpose_takes_prodigys_arguments_back(purpose: str) -> None:
    values = {**find_preset("Prodigy").values, **find_preset(purpose).values}
    assert "d_coef" not in values["optimizer_args"] and values["learning_rate"] == 1e-4


def test_a_likeness_is_trained_with_adafactor_only_where_there_is_one() -> None:
    with_it = likeness(("AdamW", "Adafactor"))
    without = likeness(("AdamW",))
    assert (with_it.values["optimizer"], without.values["optimizer"]) == ("Adafactor", "AdamW")
    assert "AdamW is the nearest here" in without.when
    assert (without.values["rank"], without.values["alpha"]) == (96, 72.0)
    assert find_preset("likeness") == likeness(OPTIMIZERS)


@pytest.mark.parametrize("name", ["Low VRAM", "low-vram", "low_vram", "LOWVRAM"])
def test_a_preset_is_found_in_every_spelling(name: str) -> None:
    assert find_preset(name).name == "Low VRAM"


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(LoraTrainError, match="Did you mean 'Character'"):
        find_preset("charakter")
    with pytest.raises(LoraTrainError, match="There are: Character, Style"):
        find_preset("xyz")


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_a_preset_is_documented(preset: Preset) -> None:
    page = ROOT / "docs" / "from-kohya.md"
    assert f"| {preset.name} | {preset.when} |" in page.read_text(encoding="utf-8")
