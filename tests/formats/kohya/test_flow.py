"""Rectified flow in the settings of sd-scripts' forks."""

from __future__ import annotations

from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya.exporter import to_gui
from lib_lora_train.formats.kohya.importer import Imported, from_script

FLOW = ("prediction_type", "timestep_sampling", "sigmoid_mean", "sigmoid_scale", "timestep_shift")


def flow_settings(imported: Imported) -> tuple[Any, ...]:
    return tuple(getattr(imported.config, name) for name in FLOW)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ("rectified_flow", "sigmoid", 0.0, 1.0, 1.0)),  # their default is logit-normal, ours uniform
        ({"flow_timestep_distribution": "uniform"}, ("rectified_flow", "uniform", 0.0, 1.0, 1.0)),
        (
            {"flow_logit_mean": -0.2, "flow_logit_std": "1.5", "flow_uniform_static_ratio": 3},
            ("rectified_flow", "sigmoid", -0.2, 1.5, 3.0),
        ),
        (
            {"flow_timestep_distribution": "uniform", "flow_uniform_static_ratio": 2.5, "flow_logit_mean": 0.5},
            ("rectified_flow", "uniform", 0.0, 1.0, 2.5),
        ),
    ],
)
def test_a_flow_and_its_sigmas_are_imported(values: dict[str, Any], expected: tuple[Any, ...]) -> None:
    imported = from_script({"flow_model": True, **values})
    assert flow_settings(imported) == expected
    assert all(ignored.is_harmless for ignored in imported.ignored if ignored.key.startswith("flow_"))


def test_without_flow_model_its_other_keys_mean_nothing() -> None:
    imported = from_script({"flow_model": False, "flow_logit_mean": 1.0, "flow_uniform_static_ratio": 3.0})
    assert flow_settings(imported) == ("auto", "uniform", 0.0, 1.0, 1.0)
    assert all(ignored.is_harmless for ignored in imported.ignored)


@pytest.mark.parametrize("values", [{"noise_offset": 0.05}, {"min_snr_gamma": 5}, {"zero_terminal_snr": True}])
def test_what_the_forks_ignore_with_a_flow_is_ignored(values: dict[str, Any]) -> None:
    imported = from_script({"flow_model": True, **values})
    (name,) = values
    assert getattr(imported.config, name) == getattr(TrainConfig(), name)
    assert name in {ignored.key for ignored in imported.ignored}


@pytest.mark.parametrize("name", ["flow_use_ot", "flow_uniform_shift", "contrastive_flow_matching"])
def test_what_is_not_supported_is_named(name: str) -> None:
    (ignored,) = [one for one in from_script({"flow_model": True, name: True}).ignored if one.key == name]
    assert not ignored.is_harmless


def test_the_gui_has_no_rectified_flow() -> None:
    plain, lost = (
        {one.key for one in to_gui(config).lost}
        for config in (TrainConfig(), TrainConfig(prediction_type="rectified_flow", timestep_shift=3.0))
    )
    assert lost - plain == {"prediction_type", "timestep_shift"}
