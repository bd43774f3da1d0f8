"""Captions are found beside their picture, hold their trigger in front, and vary as the rule says."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.config import TrainConfig
from lib_lora_train.data.captions import (
    CaptionRule,
    caption_rule,
    draw_caption,
    read_caption,
    read_caption_file,
    split_tags,
    with_trigger,
)

TAGS = st.lists(st.sampled_from(["zorp", "red", "a cat", "zorp hat", "night", "blue sky"]), max_size=6)
LONG = "zorp, a, b, c, d, e, f, g"


# --- files --------------------------------------------------------------------------------------


def test_the_ending_asked_for_goes_first_then_the_usual_ones(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    assert read_caption(image, ".tags") is None
    (tmp_path / "a.txt").write_text("from txt")
    assert read_caption(image, ".tags") == "from txt"
    (tmp_path / "a.caption").write_text("from caption")
    assert read_caption(image, ".tags") == "from caption"
    (tmp_path / "a.tags").write_text("from tags")
    assert read_caption(image, "tags") == "from tags"
    assert read_caption(image, ".txt") == "from txt"


@pytest.mark.parametrize("name", ["a.TXT", "a.Caption"])
def test_letter_case_of_the_ending_does_not_matter(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("found")
    assert read_caption(tmp_path / "a.PNG", ".txt") == "found"


def test_endings_of_several_parts_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.b.wd14.txt").write_text("found")
    assert read_caption(tmp_path / "a.b.png", ".wd14.txt") == "found"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_captions_are_read_with_and_without_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ein schöner Käfer, 猫", encoding=encoding)
    assert read_caption_file(path) == ("ein schöner Käfer, 猫", None)


def test_a_caption_in_another_encoding_is_read_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("schöner Käfer".encode("latin-1"))
    caption, problem = read_caption_file(path)
    assert caption == "schöner Käfer"
    assert problem is not None
    assert problem.where == str(path)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("one line\n", "one line"),
        ("tag a\ntag b\n\ntag c", "tag a, tag b, tag c"),
        ("tag a,\r\ntag b", "tag a, tag b"),
        ("First sentence.\nSecond one.", "First sentence. Second one."),
        ("  much \t blank ", "much blank"),
        (" \n\n", ""),
    ],
)
def test_lines_become_one(tmp_path: Path, text: str, caption: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, newline="")
    assert read_caption(tmp_path / "a.png", ".txt") == caption


# --- trigger ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", "zorp"),
        ("red, night", "zorp, red, night"),
        ("zorp, red", "zorp, red"),
        ("red, zorp, night", "zorp, red, night"),
        ("red, Zorp, night, zorp", "zorp, red, night"),
        ("night, photo of zorp, red", "photo of zorp, night, red"),
        ("zorps everywhere", "zorp, zorps everywhere"),
    ],
)
def test_the_trigger_stands_first_once(caption: str, expected: str) -> None:
    assert with_trigger(caption, "zorp") == expected


def test_a_trigger_of_several_tags_stays_together() -> None:
    assert with_trigger("cat, red", "zorp, cat") == "zorp, cat, red"


def test_without_a_trigger_the_caption_stays() -> None:
    assert with_trigger(" a, b ", "") == "a, b"


@given(TAGS)
def test_adding_the_trigger_again_changes_nothing(tags: list[str]) -> None:
    once = with_trigger(", ".join(tags), "zorp")
    assert with_trigger(once, "zorp") == once
    assert "zorp" in split_tags(once)[0].split()
    assert set(split_tags(once)) == set(tags) | ({"zorp"} if "zorp" in split_tags(once) else set())


# --- drawing ------------------------------------------------------------------------------------


def test_without_shuffle_and_dropout_the_caption_stays_as_it_is() -> None:
    assert draw_caption("A sentence,  with blanks.", CaptionRule(), random.Random(1)) == "A sentence,  with blanks."


@given(st.integers(0, 1000), st.integers(0, 10))
def test_shuffle_keeps_the_front_and_loses_nothing(seed: int, keep: int) -> None:
    drawn = split_tags(draw_caption(LONG, CaptionRule(shuffle=True, keep_tokens=keep), random.Random(seed)))
    tags = split_tags(LONG)
    assert drawn[:keep] == tags[:keep]
    assert sorted(drawn) == sorted(tags)


@given(st.integers(0, 1000))
def test_shuffle_never_moves_the_trigger(seed: int) -> None:
    rule = CaptionRule(shuffle=True, keep_tokens=0, trigger="zorp, hat")
    assert draw_caption(f"zorp, hat, {LONG}", rule, random.Random(seed)).startswith("zorp, hat, ")
    in_sentence = CaptionRule(shuffle=True, keep_tokens=0, trigger="zorp")
    assert draw_caption("photo of zorp, a, b, c", in_sentence, random.Random(seed)).startswith("photo of zorp, ")


def test_shuffle_reaches_every_order_equally() -> None:
    rule = CaptionRule(shuffle=True, keep_tokens=1)
    orders = Counter(draw_caption("zorp, a, b, c", rule, random.Random(seed)) for seed in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 150 for count in orders.values())  # 5 standard deviations of a fair draw


def test_dropout_has_its_share() -> None:
    drawn = [draw_caption("a, b", CaptionRule(dropout=0.1), random.Random(seed)) for seed in range(5000)]
    assert abs(drawn.count("") / 5000 - 0.1) < 0.022  # 5 standard deviations
    assert set(drawn) == {"", "a, b"}


def test_caption_dropout_keeps_trigger_word() -> None:
    rule = CaptionRule(dropout=1.0, trigger="zorp")
    assert draw_caption("zorp, red", rule, random.Random(0)) == "zorp"


def test_dropout_does_not_change_the_shuffles() -> None:
    plain = CaptionRule(shuffle=True, keep_tokens=1)
    dropping = CaptionRule(shuffle=True, keep_tokens=1, dropout=0.5)
    pairs = [
        (draw_caption(LONG, plain, random.Random(s)), draw_caption(LONG, dropping, random.Random(s))) for s in range(99)
    ]
    assert all(dropped in ("", kept) for kept, dropped in pairs)


def test_the_rule_comes_from_the_settings() -> None:
    config = TrainConfig(shuffle_captions=True, keep_tokens=2, caption_dropout=0.1)
    assert caption_rule(config, "zorp") == CaptionRule(True, 2, 0.1, "zorp")
