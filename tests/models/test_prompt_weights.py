"""Brackets have the same weights as in the webui's prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.models.prompt_weights import WeightedText, parse_plain_prompt, parse_weighted_prompt

# The examples in the documentation of the webui's own parser.
EXAMPLES: list[tuple[str, list[tuple[str, float]]]] = [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.573),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641),
            (".", 1.1),
        ],
    ),
    ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
    ("(a: 1.2 )", [("a", 1.2)]),
    ("a:1.2) b]", [("a:1.2) b]", 1.0)]),
    ("(a BREAK b:1.5)", [("a", 1.5), ("BREAK", -1.5), ("b", 1.5)]),
]


@pytest.mark.parametrize(("text", "parts"), EXAMPLES)
def test_weights_match_the_webuis_examples(text: str, parts: list[tuple[str, float]]) -> None:
    found = parse_weighted_prompt(text)
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


def letter_weights(text: str) -> list[tuple[str, float]]:
    """Every visible letter with its weight, by recursive descent over properly nested brackets."""

    def group(start: int, closing: str) -> tuple[list[tuple[str, float]], int]:
        letters: list[tuple[str, float]] = []
        place = start
        while place < len(text) and text[place] != closing:
            if text[place] in "([":
                inner, place = group(place + 1, ")" if text[place] == "(" else "]")
                letters += inner
            else:
                letters.append((text[place], 1.0))
            place += 1
        shown = "".join(letter for letter, _ in letters)
        head, colon, number = shown.rpartition(":")
        factor = {")": 1.1, "]": 1 / 1.1, "": 1.0}[closing]
        if closing == ")" and colon and number.replace(".", "").isdigit():
            letters, factor = letters[: len(head)], float(number)
        return [(letter, weight * factor) for letter, weight in letters], place

    return group(0, "")[0]


_word = st.text("abc ,", max_size=4)
_nested = st.recursive(
    _word,
    lambda inner: (
        st.builds("({})".format, inner)
        | st.builds("[{}]".format, inner)
        | st.builds("({}:{})".format, inner, st.sampled_from(["1.2", "0.5", "2"]))
        | st.builds("{}{}".format, inner, inner)
    ),
    max_leaves=8,
)


@given(_nested)
def test_nested_weights_are_multiplied(text: str) -> None:
    found = [(letter, part.weight) for part in parse_weighted_prompt(text) for letter in part.text]
    expected = letter_weights(text)
    assert [letter for letter, _ in found] == [letter for letter, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@given(st.text("ab()[]:\\1. ,", max_size=20))
def test_any_text_can_be_parsed(text: str) -> None:
    parts = parse_weighted_prompt(text)
    assert "".join(part.text for part in parts if part.text).count("a") == text.count("a")


def test_plain_prompts_keep_brackets_and_split_at_break() -> None:
    assert parse_plain_prompt(r"zorp (fox:1.2) \(a\)") == [WeightedText("zorp (fox:1.2) (a)")]
    assert [part.is_break for part in parse_plain_prompt("a BREAK b")] == [False, True, False]
    assert parse_plain_prompt("BREAKING") == [WeightedText("BREAKING")]
