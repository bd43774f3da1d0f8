"""Promises of train/prompt.py."""

from __future__ import annotations

import pytest

from lib_lora_train.config.sample_prompts import SamplePrompt, parse_prompt
from lib_lora_train.core.errors import ConfigError

DEFAULTS = SamplePrompt("", "ugly", 512, 512, 42, 20, 7.0)


def test_all_of_kohyas_options_are_read() -> None:
    line = "a cat, on grass --n blurry, two-headed --w 640 --h 384 --d 7 --s 30 --l 5.5"
    expected = SamplePrompt("a cat, on grass", "blurry, two-headed", 640, 384, 7, 30, 5.5)
    assert parse_prompt(line, DEFAULTS) == expected


def test_what_is_not_said_comes_from_the_defaults() -> None:
    assert parse_prompt("  a cat ", DEFAULTS) == SamplePrompt("a cat", "ugly", 512, 512, 42, 20, 7.0)


def test_an_empty_negative_prompt_overrides_the_default() -> None:
    assert parse_prompt("a cat --n --d 3", DEFAULTS) == SamplePrompt("a cat", "", 512, 512, 3, 20, 7.0)


def test_words_with_hyphens_are_no_options() -> None:
    assert parse_prompt("a well-known cat - grey", DEFAULTS).prompt == "a well-known cat - grey"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a --x 3", "--x is not an option here"),
        ("a --ss euler_a", "set sample_sampler"),
        ("a --w 500", "--w 500 is not a multiple of 8. Nearest: 496 or 504."),
        ("a --h 8", "--h 8 is outside 64…4096"),
        ("a --s many", "--s needs a whole number, not 'many'"),
        ("a --l", "--l needs a number, not ''"),
        ("a --l nan", "--l nan is outside"),
        ("a --d -1", "--d -1 is outside"),
    ],
)
def test_a_bad_option_gets_a_sentence(line: str, told: str) -> None:
    with pytest.raises(ConfigError, match="sample_prompts") as raised:
        parse_prompt(line, DEFAULTS)
    assert told in str(raised.value)


def test_all_problems_of_a_line_are_told_together() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_prompt("a --w 500 --q 1", DEFAULTS)
    assert len(raised.value.problems) == 2
