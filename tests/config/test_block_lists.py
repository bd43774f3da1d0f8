"""Lists for the UNet's blocks are read in kohya's syntax, and everything else is refused with a reason."""

from __future__ import annotations

import pytest

from lib_lora_train.config.block_lists import WEIGHT_COUNTS, parse_alphas, parse_ranks, parse_weights


def _weights(text: str) -> tuple[float, ...]:
    return parse_weights(text, 12, WEIGHT_COUNTS)


@pytest.mark.parametrize("text", [",".join("4" * 25), "[" + ", ".join("4" * 25) + "]", " ".join("4" * 25)])
def test_ranks_are_read_with_any_usual_separator(text: str) -> None:
    assert parse_ranks(text) == (4,) * 25


def test_alphas_may_be_fractions_but_ranks_may_not() -> None:
    text = ",".join(["0.5"] * 23)
    assert parse_alphas(text) == (0.5,) * 23
    with pytest.raises(ValueError, match="a rank that is not a whole number"):
        parse_ranks(text)


def test_an_empty_text_means_no_list() -> None:
    assert parse_ranks("") == parse_alphas(" ") == _weights("") == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("4,4", "has 2 numbers instead of 25 or 23"),
        (",".join(["4"] * 24 + ["-1"]), "contains a number below 0"),
        (",".join(["4"] * 24 + ["nan"]), "contains a number below 0"),
        ("many", "'many' is not a list of numbers such as 2,4,4,8"),
    ],
)
def test_an_invalid_list_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_ranks(text)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("cosine", 1, 0),
        ("sine", 0, 1),
        ("linear", 0, 1),
        ("reverse_linear", 1, 0),
        ("zeros", 0, 0),
        ("SINE+.25", 0.25, 1.25),
    ],
)
def test_a_curve_gives_a_weight_for_each_block(text: str, first: float, last: float) -> None:
    weights = _weights(text)
    assert len(weights) == 12
    assert [weights[0], weights[-1]] == pytest.approx([first, last])


def test_cosine_and_sine_are_quarter_waves() -> None:
    assert parse_weights("sine", 3, WEIGHT_COUNTS)[1] == pytest.approx(2**-0.5)
    assert parse_weights("cosine", 3, WEIGHT_COUNTS)[1] == pytest.approx(2**-0.5)
