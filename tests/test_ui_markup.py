"""Texts from outside cannot become HTML, and every problem leads to its field."""

from __future__ import annotations

import pytest

from lib_lora_train.errors import Problem
from lib_lora_train.ui.markup import count, field_key, problem_list


def test_texts_are_escaped() -> None:
    shown = problem_list([Problem("error", "/x/<img onerror=1>.png", "<script>alert('1')</script>")])
    assert "<script" not in shown
    assert "<img" not in shown


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ("rank", "rank"),
        ("concepts", "concepts"),
        ("concepts[1].repeats", "concept_repeats"),
        ("concepts[2].folder", "regularisation_folder"),
        ("concepts[1]", "concept_folder"),
        ("/some/where/picture.png", ""),
        ("", ""),
    ],
)
def test_a_problem_leads_to_its_field(where: str, key: str) -> None:
    assert field_key(where) == key


def test_errors_stand_first() -> None:
    shown = problem_list(
        [Problem("hint", "", "third"), Problem("error", "", "first"), Problem("warning", "", "second")]
    )
    assert shown.index("first") < shown.index("second") < shown.index("third")


def test_counts_are_words_for_people() -> None:
    assert [count(1, "step"), count(2000, "step")] == ["1 step", "2,000 steps"]
