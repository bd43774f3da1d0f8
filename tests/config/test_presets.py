"""Presets are valid, say when to use them, and can be combined."""

from __future__ import annotations

import itertools
import re

import pytest

from lib_lora_train.config.family_catalog import families_forge_ignores
from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.presets import FAMILY_PRESETS, PRESETS, Preset, find_preset, likeness_preset
from lib_lora_train.config.settings.network import FAMILIES
from lib_lora_train.config.settings.optimizer import OPTIMIZERS
from lib_lora_train.config.train_config import Concept, TrainConfig, config_values, read_config
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import LoraTrainError
from tests.paths import ROOT

BASE = TrainConfig(concepts=(Concept("cats", trigger="zkw"),), sample_prompts=("zkw on a hill",))
NAMES = [preset.name for preset in PRESETS]
WARNED = [p.name for p in FAMILY_PRESETS if p.values["family"] == "full"]
"""It needs gigabytes. That some webuis misread a family is said with the model: tests/runs/test_readable_files.py."""
PURPOSES = ["Character", "Style", "Concept", "Likeness", "Multi-concept"]


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_a_preset_is_valid_and_has_no_warnings(preset: Preset) -> None:
    config, problems = read_config({**config_values(BASE), **preset.values})
    assert problems == ()
    assert config == BASE.replace(**preset.values), "values are of the declared types"
    warnings = [problem for problem in validate(config) if problem.level != "hint"]
    if preset.name in WARNED:
        assert [(problem.level, problem.where) for problem in warnings] == [("warning", "family")]
    else:
        assert warnings == [], "a preset's values must not be warned of; see config/validation/network.py"


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_a_preset_says_in_one_sentence_when_to_use_it(preset: Preset) -> None:
    assert re.fullmatch(r"For [^.!?]+\.", preset.when)


@pytest.mark.parametrize(("purpose", "machine"), itertools.product(PURPOSES, ["SDXL", "Low VRAM"]))
def test_presets_for_a_purpose_and_a_machine_can_be_combined(purpose: str, machine: str) -> None:
    for names in ((purpose, machine), (purpose, "Prodigy", machine), (purpose, "Prodigy fast", machine)):
        values = {name: value for chosen in names for name, value in find_preset(chosen).values.items()}
        assert [problem for problem in validate(BASE.replace(**values)) if problem.level != "hint"] == []


@pytest.mark.parametrize("preset", FAMILY_PRESETS, ids=lambda preset: preset.name)
def test_a_preset_names_forge_if_it_ignores_the_files(preset: Preset) -> None:
    assert ("Forge does not" in preset.when) == (preset.values["family"] in families_forge_ignores())


def test_every_family_has_a_preset_and_each_undoes_the_others() -> None:
    shared = set(FAMILY_PRESETS[0].values)
    extra = {"batch_size", "gradient_accumulation"}  # DyLoRA's, which suit every family
    assert {preset.values["family"] for preset in FAMILY_PRESETS} == set(FAMILIES)
    assert all(shared <= set(preset.values) <= shared | extra for preset in FAMILY_PRESETS)


@pytest.mark.parametrize("machine", ["SDXL", "Low VRAM"])
@pytest.mark.parametrize("preset", FAMILY_PRESETS, ids=lambda preset: preset.name)
def test_presets_for_a_family_and_a_machine_can_be_combined(preset: Preset, machine: str) -> None:
    config = BASE.replace(**{**preset.values, **find_preset(machine).values})
    found = [problem for problem in validate(config) if problem.level != "hint"]
    assert [problem.where for problem in found] == (["family"] if preset.name in WARNED else [])


def test_there_are_presets_for_both_usual_sets_of_prodigy_arguments() -> None:
    """Guides and colabs share two: careful (0.8, 0.99) and fast (2, 0.999); all else is the same."""
    careful, fast = (
        parse_optimizer_args(find_preset(name).values["optimizer_args"]) for name in ("prodigy", "prodigyfast")
    )
    common = {"decouple": True, "weight_decay": 0.01, "use_bias_correction": True, "safeguard_warmup": True}
    assert careful == {**common, "d_coef": 0.8, "betas": (0.9, 0.99)}
    assert fast == {**common, "d_coef": 2, "betas": (0.9, 0.999)}


@pytest.mark.parametrize("purpose", PURPOSES)
def test_presets_for_a_purpose_undo_the_prodigy_preset(purpose: str) -> None:
    values = {**find_preset("Prodigy").values, **find_preset(purpose).values}
    assert "d_coef" not in values["optimizer_args"] and values["learning_rate"] == 1e-4


def test_the_likeness_preset_uses_adafactor_only_if_available() -> None:
    with_it = likeness_preset(("AdamW", "Adafactor"))
    without = likeness_preset(("AdamW",))
    assert (with_it.values["optimizer"], without.values["optimizer"]) == ("Adafactor", "AdamW")
    assert "here AdamW comes closest" in without.when
    assert (without.values["rank"], without.values["alpha"]) == (96, 72.0)
    assert find_preset("likeness") == likeness_preset(OPTIMIZERS)


@pytest.mark.parametrize("name", ["Low VRAM", "low-vram", "low_vram", "LOWVRAM"])
def test_a_preset_is_found_in_any_spelling(name: str) -> None:
    assert find_preset(name).name == "Low VRAM"


def test_an_unknown_preset_gets_a_suggestion() -> None:
    with pytest.raises(LoraTrainError, match="Did you mean 'Character'"):
        find_preset("charakter")
    with pytest.raises(LoraTrainError, match="Available: Character, Style"):
        find_preset("xyz")


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_a_preset_is_documented(preset: Preset) -> None:
    page = ROOT / "docs" / "from-kohya.md"
    row = f"| {preset.name} | {preset.when} |"
    assert row in page.read_text(encoding="utf-8"), f"add this row to docs/from-kohya.md: {row}"
