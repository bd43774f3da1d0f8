"""Text from outside is escaped, and every problem names its field."""

from __future__ import annotations

import pytest

from lib_lora_train.core.errors import Problem
from lib_lora_train.core.wording import count
from lib_lora_train.web.markup import field_key, problem_list


def test_texts_are_escaped() -> None:
    shown = problem_list([Problem("error", "/x/<img onerror=1>.png", "<script>alert('1')</script>")])
    assert "<script" not in shown
    assert "<img" not in shown


@pytest.mark.parametrize(
    ("where", "key"),
    [
        ("rank", "rank"),
        ("concepts", "concepts_1_folder"),
        ("concepts[1].repeats", "concepts_1_repeats"),
        ("concepts[2].folder", "concepts_2_folder"),
        ("concepts[1]", "concepts_1_folder"),
        ("/some/where/image.png", ""),
        ("", ""),
    ],
)
def test_a_problem_names_its_field(where: str, key: str) -> None:
    assert field_key(where) == key


def test_a_fix_is_shown_beside_its_problem_only() -> None:
    fixable, other = Problem("warning", "warmup", "too long"), Problem("error", "rank", "too large")
    shown = problem_list([fixable, other], {fixable: "Set <warmup> to 0"})
    assert shown.count("data-lt-fix") == 1
    assert "too long</p><button type='button' class='lt-small' data-lt-fix='0'" in shown
    assert "Set &lt;warmup&gt; to 0" in shown


def test_errors_come_first() -> None:
    shown = problem_list(
        [Problem("hint", "", "third"), Problem("error", "", "first"), Problem("warning", "", "second")]
    )
    assert shown.index("first") < shown.index("second") < shown.index("third")


def test_counts_have_separators_and_plurals() -> None:
    assert [count(1, "step"), count(2000, "step")] == ["1 step", "2,000 steps"]
