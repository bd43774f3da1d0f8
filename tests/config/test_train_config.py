"""Every setting is declared completely, and every value is read or refused with a reason."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.config.parameters import Group, Parameter, Tier, parameters_of, parse_value
from lib_lora_train.config.train_config import Concept, TrainConfig, config_values, duration_in_steps, read_config

CONFIGS = (TrainConfig, Concept)
ALL = [parameter for config_class in CONFIGS for parameter in parameters_of(config_class)]


def _named(parameter: Parameter) -> str:
    return parameter.name


def _another_value(parameter: Parameter) -> Any:
    """A valid value that is not the default."""
    if parameter.choices:
        return next(choice for choice in parameter.choices if choice != parameter.default)
    if parameter.kind is bool:
        return not parameter.default
    if parameter.kind is str:
        return "something else"
    if parameter.kind is tuple:
        return ("one", "two")
    for limit in (parameter.high, parameter.low):
        if limit is not None and limit != parameter.default:
            return parameter.kind(limit)
    raise AssertionError(f"{parameter.name} has no limits")


# --- completeness -------------------------------------------------------------------------------


def test_every_field_except_concepts_is_declared() -> None:
    for config_class in CONFIGS:
        fields = {field.name for field in dataclasses.fields(config_class)} - {"concepts"}
        assert {parameter.name for parameter in parameters_of(config_class)} == fields


@pytest.mark.parametrize("parameter", ALL, ids=_named)
def test_every_parameter_is_declared_completely(parameter: Parameter) -> None:
    assert len(parameter.help) >= 20
    assert parameter.help.endswith(".")
    assert parameter.tier in typing.get_args(Tier)
    assert parameter.group in typing.get_args(Group)
    assert parameter.kind in (int, float, bool, str, tuple)
    if parameter.kind in (int, float):
        assert parameter.low is not None
        assert parameter.high is not None
        assert parameter.low < parameter.high


@pytest.mark.parametrize("parameter", ALL, ids=_named)
def test_every_default_is_valid(parameter: Parameter) -> None:
    if parameter.default is None:
        assert parameter.optional
    else:
        assert parse_value(parameter, parameter.default) == parameter.default


@pytest.mark.parametrize("config_class", CONFIGS)
def test_kohya_names_are_unique_and_differ_from_other_settings(config_class: type) -> None:
    parameters = parameters_of(config_class)
    aliases = [p.kohya for p in parameters if p.kohya]
    assert len(set(aliases)) == len(aliases)
    assert not [p.name for p in parameters for q in parameters if p.name == q.kohya and p is not q]


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("parameter", parameters_of(TrainConfig), ids=_named)
def test_every_parameter_survives_the_round_trip(parameter: Parameter) -> None:
    config = TrainConfig(concepts=(Concept("a"),)).replace(**{parameter.name: _another_value(parameter)})
    values = json.loads(json.dumps(config_values(config)))
    assert read_config(values) == (config, ())
    changed = config_values(config, only_changed=True)
    assert set(changed) == {parameter.name, "concepts"}
    assert read_config(changed) == (config, ())


@pytest.mark.parametrize("parameter", parameters_of(Concept), ids=_named)
def test_every_concept_parameter_survives_the_round_trip(parameter: Parameter) -> None:
    concept = dataclasses.replace(Concept("a"), **{parameter.name: _another_value(parameter)})
    config = TrainConfig(concepts=(Concept("b"), concept))
    assert read_config(config_values(config)) == (config, ())


def test_the_default_config_survives_the_round_trip() -> None:
    assert read_config(config_values(TrainConfig())) == (TrainConfig(), ())
    assert config_values(TrainConfig(), only_changed=True) == {}


@given(
    st.sampled_from(ALL),
    st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.lists(st.text()), st.none()),
)
def test_any_raw_value_is_parsed_or_refused_with_a_sentence(parameter: Parameter, raw: Any) -> None:
    try:
        value = parse_value(parameter, raw)
    except ValueError as reason:
        assert str(reason)
        return
    assert (value is None and parameter.optional) or isinstance(value, parameter.kind)


@pytest.mark.parametrize("name", ["warmup", "lr_decay", "stop_text_encoder"])
@pytest.mark.parametrize(
    ("written", "value"), [("10%", 0.1), (" 7.5 % ", 0.075), ("0%", 0.0), ("0.1", 0.1), ("200", 200.0), (1, 1.0)]
)
def test_a_duration_is_a_number_of_steps_a_share_or_a_percentage(name: str, written: Any, value: float) -> None:
    config, problems = read_config({name: written})
    assert problems == ()
    assert getattr(config, name) == value


@pytest.mark.parametrize("written", ["100%", "150%", "-5%", "ten%", "%"])
def test_percentages_outside_0_to_100_are_refused(written: str) -> None:
    """As 1 means one step, 100 % is refused too."""
    _, problems = read_config({"warmup": written})
    assert [problem.where for problem in problems] == ["warmup"]
    assert "below 100%" in problems[0].message


def test_only_durations_can_be_percentages() -> None:
    _, problems = read_config({"tag_dropout": "10%"})
    assert [problem.where for problem in problems] == ["tag_dropout"]


@pytest.mark.parametrize(
    ("duration", "steps"), [(0, 0), (0.29, 29), (0.295, 29), (0.999, 99), (1, 1), (1.5, 1), (200, 200)]
)
def test_a_duration_in_steps_is_rounded_down(duration: float, steps: int) -> None:
    assert duration_in_steps(duration, 100) == steps


def test_regularisation_has_no_trigger() -> None:
    concepts = (Concept("a", trigger="zok"), Concept("b"), Concept("r", trigger="cat", is_regularisation=True))
    assert TrainConfig(concepts=concepts).triggers == ("zok",)


# --- refusals -----------------------------------------------------------------------------------


def test_all_problems_are_reported_together() -> None:
    config, problems = read_config({"rank": "many", "epochs": 0, "optimizer": "AdamX", "batch_size": 4})
    assert config == TrainConfig(batch_size=4)
    texts = {p.where: p.message for p in problems}
    assert set(texts) == {"rank", "epochs", "optimizer"}
    assert "whole number" in texts["rank"]
    assert "1…10000" in texts["epochs"]
    assert "Did you mean 'AdamW'?" in texts["optimizer"]


def test_unknown_names_get_a_suggestion() -> None:
    _, problems = read_config({"lerning_rate": 1, "xyzzy": 2, "network_dim": 8})
    texts = {p.where: p.message for p in problems}
    assert "Did you mean 'learning_rate'?" in texts["lerning_rate"]
    assert texts["xyzzy"] == "is not a setting."
    assert "is called 'rank' here" in texts["network_dim"]


def test_problems_of_a_concept_name_its_number() -> None:
    _, problems = read_config({"concepts": [{"folder": "a"}, {"folder": "b", "repeats": 0}, "c"]})
    assert [p.where for p in problems] == ["concepts[2].repeats", "concepts[3]"]


def test_concepts_must_be_a_list() -> None:
    config, problems = read_config({"concepts": "cats"})
    assert config.concepts == ()
    assert [p.where for p in problems] == ["concepts"]


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("learning_rate", "1e-4", 1e-4),
        ("rank", "8", 8),
        ("rank", 8.0, 8),
        ("alpha", "", None),
        ("unet_lr", "auto", None),
        ("precision", "auto", "auto"),
        ("shuffle_captions", "yes", True),
        ("shuffle_captions", 0, False),
        ("sample_prompts", "a cat\n\n a dog ", ("a cat", "a dog")),
        ("sample_prompts", ["a cat", ""], ("a cat",)),
    ],
)
def test_values_written_as_text_are_read(name: str, raw: Any, value: Any) -> None:
    config, problems = read_config({name: raw})
    assert not problems
    assert getattr(config, name) == value


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("rank", "8.5"),
        ("rank", True),
        ("rank", "inf"),
        ("rank", "nan"),
        ("rank", ""),
        ("learning_rate", "nan"),
        ("learning_rate", -1),
        ("learning_rate", [1]),
        ("shuffle_captions", "perhaps"),
        ("output_name", ["a"]),
        ("sample_prompts", 3),
    ],
)
def test_unusable_values_are_refused(name: str, raw: Any) -> None:
    config, problems = read_config({name: raw})
    assert [(p.level, p.where) for p in problems] == [("error", name)]
    assert config == TrainConfig()


def test_alpha_is_the_rank_if_empty() -> None:
    assert TrainConfig(rank=8).effective_alpha == 8.0
    assert TrainConfig(rank=8, alpha=4.0).effective_alpha == 4.0
