"""Every family in the settings is known in each place that CONTRIBUTING.md lists."""

from __future__ import annotations

import pytest

from lib_lora_train.config.presets import FAMILY_PRESETS
from lib_lora_train.config.settings.network import FAMILIES
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya.network import gui_network
from lib_lora_train.runs.estimates.activation_trace import Layer
from lib_lora_train.runs.estimates.trained_parameters import count_parameters, saved_by_layer
from tests.stand_ins.adapter_cases import CASES

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_the_contract_is_tested_with_every_family(family: str) -> None:
    assert family in {case.family for case in CASES.values()}, "add a Case to tests/stand_ins/adapter_cases.py"


@every_family
def test_the_memory_estimate_counts_the_numbers_of_every_family(family: str) -> None:
    layer = Layer("mid_block.attentions.0.proj_in", 24, 40, 0, True)
    config = TrainConfig(family=family)
    assert count_parameters(layer, config, 4) > 0, "add it to runs/estimates/trained_parameters.py"
    saved_by_layer(layer, config, 4)


@every_family
def test_every_family_has_a_name_in_kohyas_gui(family: str) -> None:
    assert gui_network(TrainConfig(family=family, targets="full"))["LoRA_type"], "add it to formats/kohya/network.py"


@every_family
def test_every_family_has_a_preset(family: str) -> None:
    assert family in {preset.values["family"] for preset in FAMILY_PRESETS}, "add one to config/presets.py"
