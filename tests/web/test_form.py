"""The form has every parameter, loses nothing, and reports all problems together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.wording import number_text
from lib_lora_train.ui.widgets import build_widget
from lib_lora_train.web.form import (
    Draft,
    concept_fields,
    fill_form,
    form_fields,
    load_draft,
    read_form,
    save_draft,
)


def test_every_parameter_has_exactly_one_field() -> None:
    keys = [field.key for field in form_fields()]
    assert keys == [parameter.name for parameter in parameters_of(TrainConfig)]
    assert [field.key for field in concept_fields()] == [parameter.name for parameter in parameters_of(Concept)]
    assert set(fill_form(TrainConfig())) == {*keys, "concepts"}


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(concepts=(Concept("/images"),)),
        TrainConfig(
            concepts=(
                Concept("/images", repeats=7, trigger="zkw", class_word="cat"),
                Concept("/second", trigger="zkv"),
                Concept("/others", repeats=2, is_regularisation=True),
                Concept("/more others", is_regularisation=True),
            ),
            alpha=0.5,
            learning_rate=5e-5,
            text_encoder_lr=1.25e-5,
            sample_prompts=("zkw --d 1", "a tree"),
            make_grid=False,
            optimizer="Prodigy",
            seed=2**53,
        ),
    ],
)
def test_a_config_survives_the_form_unchanged(config: TrainConfig) -> None:
    assert read_form(fill_form(config))[0] == config


def test_all_problems_are_reported_together() -> None:
    cards = json.dumps([{"folder": "/images"}, {"folder": "/others", "repeats": "often"}])
    form = {**fill_form(TrainConfig()), "learning_rate": "much", "rank": 0, "concepts": cards}
    problems = read_form(form)[1]
    assert {"learning_rate", "rank", "concepts[2].repeats"} <= {p.where for p in problems if p.level == "error"}


def test_an_empty_folder_is_an_error() -> None:
    config, problems = read_form(fill_form(TrainConfig()))
    assert config.concepts == ()
    assert any(problem.level == "error" and problem.where.startswith("concepts") for problem in problems)


def test_a_second_concept_without_a_folder_is_an_error_at_that_concept() -> None:
    cards = json.dumps([{"folder": "/images"}, {"trigger": "zkw"}])
    problems = read_form({**fill_form(TrainConfig()), "concepts": cards})[1]
    assert [p.where for p in problems if p.level == "error"] == ["concepts[2].folder"]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"a"', "null"])
def test_invalid_concepts_are_read_as_none(text: str) -> None:
    assert read_form({**fill_form(TrainConfig()), "concepts": text})[0].concepts == ()


def test_the_draft_keeps_invalid_values(tmp_path: Path) -> None:
    form = {**fill_form(TrainConfig()), "learning_rate": "much", "concepts": '[{"trigger": "ż-кот"}]'}
    save_draft(tmp_path / "home", form, ("Style", "SDXL"))
    assert load_draft(tmp_path / "home") == Draft(form, ("Style", "SDXL"))


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_draft_is_ignored(tmp_path: Path, content: str) -> None:
    (tmp_path / "draft.json").write_text(content, encoding="utf-8")
    draft = load_draft(tmp_path)
    assert draft.form is None and "draft.json" in draft.left_out[0]


def test_an_old_draft_gets_the_defaults_of_new_parameters(tmp_path: Path) -> None:
    (tmp_path / "draft.json").write_text('{"rank": 8, "gone": 1}', encoding="utf-8")
    assert load_draft(tmp_path) == Draft({**fill_form(TrainConfig()), "rank": 8}, (), ("gone",))


WRONG: tuple[object, ...] = ([], {}, [1], {"a": 1}, True, 3.5, "much", float("inf"))


@pytest.mark.parametrize("key", [field.key for field in form_fields()])
def test_a_value_of_a_wrong_kind_in_the_draft_is_left_out_and_named(tmp_path: Path, key: str) -> None:
    """Every widget gets a value that it can show; the rest of the form stays."""
    plain = fill_form(TrainConfig())
    field = next(field for field in form_fields() if field.key == key)
    for wrong in WRONG:
        (tmp_path / "draft.json").write_text(json.dumps({**plain, "output_name": "mine", key: wrong}), "utf-8")
        draft = load_draft(tmp_path)
        assert draft.form is not None
        shown = draft.form[key]
        fits = isinstance(shown, bool) if field.parameter.kind is bool else isinstance(shown, (str, int, float))
        assert fits and not isinstance(shown, (list, dict)) and shown not in (float("inf"),)
        assert shown == wrong or (draft.left_out == (key,) and shown == plain[key])
        assert key == "output_name" or draft.form["output_name"] == "mine"
        build_widget(field, shown)


@pytest.mark.parametrize(
    ("concepts", "named"),
    [
        (
            '[{"folder": "/a", "repeats": [1]}, {"folder": {}, "gone": 1}]',
            ["concepts[1].repeats", "concepts[2].folder"],
        ),
        ("[1]", ["concepts"]),
        (7, ["concepts"]),
        ('[{"folder": "/a"}]', []),
    ],
)
def test_concepts_of_a_wrong_kind_in_the_draft_are_left_out_and_named(
    tmp_path: Path, concepts: object, named: list[str]
) -> None:
    (tmp_path / "draft.json").write_text(json.dumps({"rank": 8, "concepts": concepts}), "utf-8")
    draft = load_draft(tmp_path)
    assert draft.form is not None and draft.form["rank"] == 8
    assert set(named) <= set(draft.left_out) and bool(named) == bool(draft.left_out)
    assert all(isinstance(table, dict) for table in json.loads(draft.form["concepts"]))


@pytest.mark.parametrize(
    ("value", "text"), [(1e-4, "1e-4"), (5.5e-5, "5.5e-5"), (0.05, "0.05"), (16.0, "16"), (0.0, "0"), (1.0, "1")]
)
def test_numbers_are_written_the_usual_way(value: float, text: str) -> None:
    assert number_text(value) == text
