"""The schedule and optimiser of a kohya file train here what they train there, or a warning says what differs."""

from __future__ import annotations

from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya.exporter import to_gui
from lib_lora_train.formats.kohya.importer import Imported, from_gui, from_script


def gui(**values: Any) -> Imported:
    return from_gui({"LoRA_type": "Standard", "network_dim": 16, "network_alpha": 16, **values})


def script(**values: Any) -> Imported:
    return from_script({"network_module": "networks.lora", "network_dim": 16, "network_alpha": 16, **values})


def lost(imported: Imported) -> set[str]:
    return {ignored.key for ignored in imported.ignored if not ignored.is_harmless}


def said(imported: Imported, level: str) -> list[str]:
    return [str(problem) for problem in imported.problems if problem.level == level]


@pytest.mark.parametrize(
    ("values", "cycles"),
    [
        ({"lr_scheduler_num_cycles": "", "epoch": 30}, 30),
        ({"lr_scheduler_num_cycles": "", "epoch": "8", "max_train_steps": 1600}, 8),
        ({"lr_scheduler_num_cycles": ""}, 1),
        ({"lr_scheduler_num_cycles": "3", "epoch": 30}, 3),
        ({"epoch": 30}, 1),
    ],
)
def test_an_empty_number_of_cycles_is_the_number_of_epochs_in_the_gui(values: dict[str, Any], cycles: int) -> None:
    assert gui(lr_scheduler="cosine_with_restarts", **values).config.lr_cycles == cycles
    assert gui(lr_scheduler="cosine", **values).config.lr_schedule == "cosine"


def test_an_empty_number_of_cycles_is_1_in_the_script() -> None:
    config = script(lr_scheduler="cosine_with_restarts", lr_scheduler_num_cycles="", max_train_epochs=9).config
    assert config.lr_cycles == 1


def test_polynomial_falls_to_0_as_in_kohyas_tools() -> None:
    imported = script(lr_scheduler="polynomial", lr_scheduler_min_lr_ratio=0.1, lr_scheduler_power=2)
    assert (imported.config.lr_min_ratio, imported.config.lr_power) == (0.0, 2.0)
    assert lost(imported) == set()
    assert script(lr_scheduler="cosine_with_min_lr", lr_scheduler_min_lr_ratio=0.1).config.lr_min_ratio == 0.1


@pytest.mark.parametrize(
    ("name", "arguments", "closest"),
    [
        ("CosineAnnealingLR", "T_max=100", "cosine"),
        ("torch.optim.lr_scheduler.CosineAnnealingWarmRestarts", ["T_0=50"], "cosine_with_restarts"),
        ("LinearLR", "", "linear"),
        ("PolynomialLR", "power=2", "polynomial"),
        ("StepLR", "step_size=10 gamma=0.5", "constant"),
    ],
)
def test_a_class_as_schedule_is_named_and_becomes_the_closest(name: str, arguments: Any, closest: str) -> None:
    for imported in (
        gui(lr_scheduler="constant", lr_scheduler_type=name, lr_scheduler_args=arguments),
        script(lr_scheduler="constant", lr_scheduler_type=name, lr_scheduler_args=arguments),
    ):
        assert imported.config.lr_schedule == closest
        assert any(name in sentence and closest in sentence for sentence in said(imported, "warning"))
        assert "lr_scheduler_type" in lost(imported)


def test_arguments_of_the_schedule_are_named_in_a_warning() -> None:
    imported = gui(lr_scheduler="polynomial", lr_scheduler_args="lr_end=1e-5")
    assert any("lr_end=1e-5" in sentence for sentence in said(imported, "warning"))
    assert "lr_scheduler_args" in lost(imported)
    assert said(gui(lr_scheduler="polynomial", lr_scheduler_args=""), "warning") == []


@pytest.mark.parametrize("schedule", ["cosine_with_min_lr", "warmup_stable_decay"])
def test_a_schedule_that_rises_again_in_kohyas_tools_is_reported(schedule: str) -> None:
    imported = script(lr_scheduler=schedule, lr_scheduler_num_cycles=3)
    assert any("3 half-waves" in sentence for sentence in said(imported, "warning"))
    assert "lr_scheduler_num_cycles" in lost(imported)
    assert said(script(lr_scheduler=schedule, lr_scheduler_num_cycles=1), "warning") == []


@pytest.mark.parametrize(("make", "value", "offered"), [(gui, 30, "30%"), (script, 500, "500")])
def test_the_stop_of_the_text_encoder_is_ignored_as_kohyas_tools_announce(make: Any, value: int, offered: str) -> None:
    imported = make(stop_text_encoder_training=value)
    assert imported.config.stop_text_encoder == 0
    assert lost(imported) == set()
    assert any(f"set stop_text_encoder = {offered}" in sentence for sentence in said(imported, "hint"))
    assert not any("stop_text" in sentence for sentence in said(make(stop_text_encoder_training=0), "hint"))


def test_the_stop_of_the_text_encoder_cannot_be_exported() -> None:
    lost_there = {ignored.key for ignored in to_gui(TrainConfig(stop_text_encoder=0.5)).lost}
    assert lost_there == {"stop_text_encoder", *(ignored.key for ignored in to_gui(TrainConfig()).lost)}


@pytest.mark.parametrize(
    ("values", "optimizer"),
    [
        ({"use_lion_optimizer": True}, "Lion"),
        ({"use_8bit_adam": "True"}, "AdamW8bit"),
        ({"use_lion_optimizer": True, "optimizer_type": "Prodigy"}, "Prodigy"),
        ({"use_8bit_adam": True, "use_lion_optimizer": True}, "AdamW8bit"),
        ({"use_lion_optimizer": False}, "AdamW"),
    ],
)
def test_old_switches_choose_the_optimiser(values: dict[str, Any], optimizer: str) -> None:
    imported = script(**values)
    assert imported.config.optimizer == optimizer
    assert lost(imported) == set()
