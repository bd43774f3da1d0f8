"""Prompt lines have one parser: validation, the sampler and the import of kohya's settings agree on every line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.config.sample_prompts import (
    SamplePrompt,
    parse_prompt,
    prompt_groups,
    sample_prompts,
    writes_own_prompts,
)
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.formats.kohya.importer import from_gui

DEFAULTS = SamplePrompt("", "ugly", 512, 512, 42, 20, 7.0)


def _messages(line: str) -> list[str]:
    """What validation says about a prompt line."""
    config = TrainConfig(concepts=(Concept("cats"),), sample_prompts=(line,))
    return [problem.message for problem in validate(config) if problem.where == "sample_prompts[1]"]


def test_all_options_of_kohya_are_read() -> None:
    line = "a cat, on grass --n blurry, two-headed --w 640 --h 384 --d 7 --s 30 --l 5.5"
    expected = SamplePrompt("a cat, on grass", "blurry, two-headed", 640, 384, 7, 30, 5.5)
    assert parse_prompt(line, DEFAULTS) == expected


def test_options_not_given_come_from_the_defaults() -> None:
    assert parse_prompt("  a cat ", DEFAULTS) == SamplePrompt("a cat", "ugly", 512, 512, 42, 20, 7.0)


def test_an_empty_negative_prompt_overrides_the_default() -> None:
    assert parse_prompt("a cat --n --d 3", DEFAULTS) == SamplePrompt("a cat", "", 512, 512, 3, 20, 7.0)


@pytest.mark.parametrize("prompt", ["a well-known cat - grey", "a cat -- really, a well-known cat", "1990--style"])
def test_hyphens_in_a_prompt_are_not_options(prompt: str) -> None:
    assert parse_prompt(prompt, DEFAULTS).prompt == prompt
    assert _messages(prompt) == []


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("a --w 512--h 768--s 35", {"width": 512, "height": 768, "steps": 35}),
        ("a --w 512--h 768--n bad", {"width": 512, "height": 768, "negative": "bad"}),
        ("a --w\t640", {"width": 640}),
        ("a\t--w  640", {"width": 640}),
        ("a --W 640 --L 5", {"width": 640, "cfg": 5.0}),
        ("a --w 640, --h 768;", {"width": 640, "height": 768}),
        ("a --l 0", {"cfg": 0.0}),
        ("a --l .5", {"cfg": 0.5}),
        ("a --n two--headed --d 3", {"negative": "two--headed", "seed": 3}),
        ("a --d 1 --d 2", {"seed": 2}),
    ],
)
def test_whatever_sd_scripts_reads_is_read_too(line: str, values: dict[str, Any]) -> None:
    assert parse_prompt(line, DEFAULTS) == replace(DEFAULTS, prompt="a", **values)
    assert _messages(line) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a --x 3", "--x is not supported. The options are --w width,"),
        ("a --w640", "--w640 is not supported"),
        ("a --ss euler_a", "set it with sample_sampler"),
        ("a --cn pose.png", "ControlNet is not supported"),
        ("a --w 500", "--w 500 is not a multiple of 8. Nearest: 496 or 504."),
        ("a --h 8", "--h 8 is outside 64…4096"),
        ("a --s many", "--s needs a whole number, not 'many'"),
        ("a --s 0", "--s 0 is outside 1…1000"),
        ("a --l", "--l needs a number, not ''"),
        ("a --l nan", "--l nan is outside"),
        ("a --d -1", "--d -1 is outside"),
    ],
)
def test_an_invalid_option_is_explained_by_validation_and_sampler_alike(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match="sample_prompts") as raised:
        parse_prompt(line, DEFAULTS)
    assert message in str(raised.value)
    (said,) = _messages(line)
    assert message in said


def test_all_problems_of_a_line_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_prompt("a --w 500 --q 1", DEFAULTS)
    assert len(raised.value.problems) == 2
    assert len(_messages("a --w 500 --q 1")) == 2


@given(st.text(alphabet="a-whdslnqW 0156.,\t", max_size=30))
def test_validation_and_sampler_agree_on_any_line(line: str) -> None:
    try:
        parse_prompt(line, DEFAULTS)
    except ConfigError as error:
        assert _messages(line) and len(error.problems) == len(_messages(line))
    else:
        assert _messages(line) == []


def test_each_prompt_has_the_next_seed_unless_it_sets_its_own() -> None:
    config = TrainConfig(seed=7, sample_prompts=("a", "b --d 1", "c"))
    assert [prompt.seed for prompt in sample_prompts(config)] == [7, 1, 9]


# --- comments -----------------------------------------------------------------------------------


def test_comment_lines_are_not_drawn_and_not_validated() -> None:
    config = TrainConfig(concepts=(Concept("cats"),), sample_prompts=("# --x 1", "a --d 1", "  # b", "c"))
    assert [prompt.prompt for prompt in sample_prompts(config)] == ["a", "c"]
    assert validate(config) == ()


def test_comments_do_not_change_the_seeds_of_the_prompts() -> None:
    plain = TrainConfig(sample_prompts=("a", "b"))
    assert sample_prompts(plain.replace(sample_prompts=("# first", "a", "# second", "b"))) == sample_prompts(plain)


def test_prompts_that_are_all_comments_are_reported_as_empty() -> None:
    found = validate(TrainConfig(concepts=(Concept("cats"),), sample_prompts=("# a cat",)))
    assert [(problem.where, problem.level) for problem in found] == [("sample_prompts", "hint")]


def test_a_trigger_in_a_comment_does_not_count() -> None:
    config = TrainConfig(concepts=(Concept("cats", trigger="zok"),), sample_prompts=("# zok", "a cat"))
    assert [problem.where for problem in validate(config)] == ["sample_prompts"]


def test_an_invalid_line_is_named_by_its_number_in_the_setting() -> None:
    config = TrainConfig(concepts=(Concept("cats"),), sample_prompts=("# a", "b", "c --x 1"))
    assert [problem.where for problem in validate(config) if problem.level == "error"] == ["sample_prompts[3]"]


# --- groups -------------------------------------------------------------------------------------


def _control(*lines: str, trigger: str = "zok") -> tuple[int, ...]:
    config = TrainConfig(concepts=(Concept("cats", trigger=trigger),), sample_prompts=lines)
    groups = prompt_groups(config)
    assert sorted(groups.concept + groups.control) == list(range(len(sample_prompts(config))))
    assert groups.control == tuple(n for n, prompt in enumerate(sample_prompts(config)) if prompt.is_control)
    return groups.control


def test_prompts_without_a_trigger_word_are_control_prompts() -> None:
    assert _control("a zok on grass", "a cat", "# zok", "zokky", "(ZOK:1.2) --n cat", "a dog --n zok") == (1, 2, 4)
    assert _control("zok in a red hat", "red hat, zok", "zok", trigger="zok, red hat") == (2,)


def test_without_trigger_words_everything_may_change() -> None:
    assert _control("a cat", "a dog", trigger="") == ()


@pytest.mark.parametrize("heading", ["# control", "#Control:", "## CONTROL (must not change)"])
def test_a_heading_says_the_group_of_the_lines_below_it(heading: str) -> None:
    assert _control("a cat", heading, "zok cat", "# concept", "a cat", heading, "a dog") == (0, 1, 3)


def test_other_comments_are_no_headings() -> None:
    assert _control("# control the pose", "zok", "# concept art", "a cat", "# controls", "zok") == (1,)


@pytest.mark.parametrize(
    ("values", "writes"),
    [
        ({}, True),
        ({"sample_prompts": ("# control",)}, True),
        ({"sample_prompts": ("a cat",)}, False),
        ({"sample_every_n_epochs": 0}, False),
        ({"sample_every_n_epochs": 0, "sample_every_n_steps": 50}, True),
    ],
)
def test_a_run_writes_its_own_prompts_unless_there_are_some_or_samples_are_off(
    values: dict[str, Any], writes: bool
) -> None:
    assert writes_own_prompts(TrainConfig(**values)) == writes


# --- import -------------------------------------------------------------------------------------


def test_an_imported_prompt_file_is_read_by_the_same_parser() -> None:
    text = "# mine\n# Control\na cat --w 512--h 512--s 35\na dog --ss euler_a --L 5"
    imported = from_gui({"sample_prompts": text, "train_data_dir": "x"})
    assert imported.config.sample_prompts == ("# Control", "a cat --w 512 --h 512 --s 35", "a dog --l 5")
