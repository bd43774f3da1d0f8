"""Which runs a state may go on in: what decides what is learnt must be as it was, and older states still go."""

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
    """The small plan with settings of the folder's own."""
    plan = small_plan(small_config())
    concepts = [dataclasses.replace(one, settings=Concept(**settings)) for one in plan.dataset.concepts]
    return dataclasses.replace(plan, dataset=dataclasses.replace(plan.dataset, concepts=tuple(concepts)))


def state_of(config: dict[str, Any]) -> TrainState:
    return TrainState(1, {}, {}, {}, (0.0, 0), config, plan_fingerprint(small_plan(small_config())))


def test_every_caption_setting_of_a_folder_decides_what_is_learnt() -> None:
    assert set(OWN) == {one.name for one in parameters_of(Concept) if one.name.startswith("own_")}
    prints = {plan_fingerprint(plan_with(**{name: value})) for name, value in OWN.items()}
    assert len(prints | {plan_fingerprint(plan_with())}) == len(OWN) + 1


def test_folders_without_settings_of_their_own_have_the_fingerprint_of_before_there_were_any() -> None:
    """StepResult with the version before them; states of that version go on."""
    assert plan_fingerprint(plan_with()) == "9bc812ac8ae00ad07c43e61bf35b2db5ea5215c61747da9e3bd56d5475949cd9"


def test_a_setting_that_a_state_does_not_know_was_its_default() -> None:
    config, plan = small_config(), small_plan(small_config())
    older = {name: value for name, value in config_values(config).items() if name != "lora_precision"}
    require_same_run(state_of(older), config, plan)
    with pytest.raises(ConfigError, match="was fp32 when this run was interrupted and is now bf16"):
        require_same_run(state_of(older), config.replace(lora_precision="bf16"), plan)


def test_how_often_samples_are_drawn_may_change() -> None:
    config = small_config()
    require_same_run(state_of(config_values(config)), config.replace(sample_every_n_steps=7), small_plan(config))


def test_states_that_kept_a_copy_for_every_group_still_go() -> None:
    """States once held the numbers of groups at the highest rate too, which are the parameters themselves."""
    groups = {"unet": [nn.Parameter(torch.ones(3))], "text_encoder": [nn.Parameter(torch.ones(2))]}
    rates = {"unet": 1.0, "text_encoder": 0.5}
    stepper = SharedDistanceOptimizer(groups, rates, lambda params: torch.optim.SGD(params, lr=1.0))
    saved = stepper.state()
    stepper.load_state({**saved, "scaled": [torch.full((3,), 8.0), torch.full((2,), 9.0)]})
    assert stepper.state()["scaled"][0].tolist() == [9.0, 9.0]
    stepper.load_state(saved | {"scaled": [torch.full((2,), 7.0)]})
    assert stepper.state()["scaled"][0].tolist() == [7.0, 7.0]
