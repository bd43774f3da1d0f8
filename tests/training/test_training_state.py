"""Which runs may resume from a state: what determines the result must be unchanged, and older states still load."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, config_values
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.training.optimizers import SharedDistanceOptimizer
from lib_lora_train.training.training_state import TrainState, plan_fingerprint, require_same_run
from tests.stand_ins.training_parts import small_config, small_plan

OWN = {
    "own_shuffle": "on",
    "own_keep_tokens": 2,
    "own_prefix": "a,",
    "own_suffix": ", b",
    "own_caption_dropout": 0.1,
    "own_tag_dropout": 0.1,
}


def plan_with(**settings: Any) -> Plan:
    """The small plan with settings of its folder."""
    plan = small_plan(small_config())
    concepts = [dataclasses.replace(one, settings=Concept(**settings)) for one in plan.dataset.concepts]
    return dataclasses.replace(plan, dataset=dataclasses.replace(plan.dataset, concepts=tuple(concepts)))


def state_of(config: dict[str, Any]) -> TrainState:
    return TrainState(1, {}, {}, {}, (0.0, 0), config, plan_fingerprint(small_plan(small_config())))


def test_every_caption_setting_of_a_folder_is_in_the_fingerprint() -> None:
    assert set(OWN) == {one.name for one in parameters_of(Concept) if one.name.startswith("own_")}
    prints = {plan_fingerprint(plan_with(**{name: value})) for name, value in OWN.items()}
    assert len(prints | {plan_fingerprint(plan_with())}) == len(OWN) + 1


def test_folders_without_own_settings_keep_the_fingerprint_of_older_versions() -> None:
    """Computed with the version before these settings existed; its states can be resumed."""
    assert plan_fingerprint(plan_with()) == "9bc812ac8ae00ad07c43e61bf35b2db5ea5215c61747da9e3bd56d5475949cd9"


def test_a_setting_missing_from_an_old_state_counts_as_its_default() -> None:
    config, plan = small_config(), small_plan(small_config())
    older = {name: value for name, value in config_values(config).items() if name != "lora_precision"}
    require_same_run(state_of(older), config, plan)
    with pytest.raises(ConfigError, match="was fp32 when this run was interrupted and is now bf16"):
        require_same_run(state_of(older), config.replace(lora_precision="bf16"), plan)


def test_the_sample_interval_may_change_on_resume() -> None:
    config = small_config()
    require_same_run(state_of(config_values(config)), config.replace(sample_every_n_steps=7), small_plan(config))


def test_states_with_a_copy_for_every_group_can_still_be_loaded() -> None:
    """Older states also have the values of groups at the highest rate, which are the parameters themselves."""
    groups = {"unet": [nn.Parameter(torch.ones(3))], "text_encoder": [nn.Parameter(torch.ones(2))]}
    rates = {"unet": 1.0, "text_encoder": 0.5}
    stepper = SharedDistanceOptimizer(groups, rates, lambda params: torch.optim.SGD(params, lr=1.0))
    saved = stepper.state()
    stepper.load_state({**saved, "scaled": [torch.full((3,), 8.0), torch.full((2,), 9.0)]})
    assert stepper.state()["scaled"][0].tolist() == [9.0, 9.0]
    stepper.load_state(saved | {"scaled": [torch.full((2,), 7.0)]})
    assert stepper.state()["scaled"][0].tolist() == [7.0, 7.0]
