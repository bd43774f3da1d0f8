"""Captions are found next to their image, start with the trigger word, and vary as the rule says."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.caption_augmentation import CaptionRule, draw_caption, make_caption_rule, resolve_wildcards
from lib_lora_train.dataset.caption_encoding import Reading, decode_as, decode_caption, list_readings
from lib_lora_train.dataset.captions import (
    CaptionText,
    find_caption_file,
    index_by_extension,
    put_trigger_first,
    read_caption_file,
    split_tags,
)

TAGS = st.lists(st.sampled_from(["zorp", "red", "a cat", "zorp hat", "night", "blue sky"]), max_size=6)
LONG = "zorp, a, b, c, d, e, f, g"


# --- files --------------------------------------------------------------------------------------


def read_caption(image: Path, extension: str) -> str | None:
    path = find_caption_file(image, extension, index_by_extension(image.parent.iterdir()))
    return None if path is None else read_caption_file(path)[0].joined


def test_the_configured_extension_is_tried_before_the_usual_ones(tmp_path: Path) -> None:
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
def test_the_case_of_the_extension_does_not_matter(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("found")
    assert read_caption(tmp_path / "a.PNG", ".txt") == "found"


def test_extensions_with_several_dots_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.b.wd14.txt").write_text("found")
    assert read_caption(tmp_path / "a.b.png", ".wd14.txt") == "found"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_captions_are_read_with_and_without_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ein schöner Käfer, 猫", encoding=encoding)
    assert read_caption_file(path) == (CaptionText("ein schöner Käfer, 猫", ("ein schöner Käfer, 猫",)), None)


def test_a_caption_in_another_encoding_is_read_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("schöner Käfer".encode("latin-1"))
    caption, problem = read_caption_file(path)
    assert caption.joined == "schöner Käfer"
    assert problem is not None
    assert problem.where == str(path)
    assert "Windows-1252" in problem.message and "schöner Käfer" in problem.message, "the reading is shown"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("zok, рыжий кот, смотрит вверх", "cp1251"),
        ("zok, it’s a café, naïve", "cp1252"),
        ("zok, 女の子, 青い目, 長い髪", "cp932"),
        ("zok, 女孩, 蓝眼睛, 长头发", "gb18030"),
        ("zok, 소녀, 파란 눈, 긴 머리", "cp949"),
        ("zok, świat, żółty kot, dziewczyna", "cp1250"),
        ("zok, κορίτσι, μακριά μαλλιά", "cp1253"),
    ],
)
def test_captions_in_old_encodings_are_read_as_they_were_written(text: str, encoding: str) -> None:
    raw = text.encode(encoding)
    assert decode_caption(raw) == (text, False)
    assert Reading(encoding, text) in list_readings(raw)
    assert decode_as(raw, encoding) == text


def test_every_reading_of_any_bytes_is_different_and_there_is_at_least_one() -> None:
    for raw in (b"\xe9", b"\x81\x8d", b"\xff\xfe\xff", bytes(range(128, 256))):
        texts = [reading.text for reading in list_readings(raw)]
        assert texts and len(texts) == len(set(texts))
    with pytest.raises(DataError, match="Shift-JIS"):
        decode_as(b"\x81", "cp932")


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("one line\n", "one line"),
        ("tag a\ntag b\n\ntag c", "tag a, tag b, tag c"),
        ("tag a,\r\ntag b", "tag a, tag b"),
        ("First sentence.\nSecond one.", "First sentence. Second one."),
        ("tag a，\ntag b", "tag a， tag b"),
        ("  much \t blank ", "much blank"),
        (" \n\n", ""),
    ],
)
def test_lines_are_joined_into_one(tmp_path: Path, text: str, caption: str) -> None:
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
def test_the_trigger_comes_first_exactly_once(caption: str, expected: str) -> None:
    assert put_trigger_first(caption, "zorp") == expected


def test_a_trigger_of_several_tags_stays_together() -> None:
    assert put_trigger_first("cat, red", "zorp, cat") == "zorp, cat, red"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("night ||| red, zorp ||| best", "zorp, night ||| red ||| best"),
        ("night, zorp ||| red", "zorp, night ||| red"),
    ],
)
def test_the_trigger_comes_before_the_first_separator(caption: str, expected: str) -> None:
    assert put_trigger_first(caption, "zorp", "|||") == expected


@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("a, {b, c|d}, e", ["a", "{b, c|d}", "e"]),
        ("a, :}, e", ["a", ":}", "e"]),
        ("a, }{, e", ["a", "}{", "e"]),
        ("", []),
        (" , ,a", ["a"]),
        ("a，b，c", ["a", "b", "c"]),
        ("1girl、青い目、長い髪", ["1girl", "青い目", "長い髪"]),
        ("a, b，{c，d|e}﹐ f", ["a", "b", "{c，d|e}", "f"]),
    ],
)
def test_a_comma_in_balanced_braces_does_not_split_a_tag(caption: str, tags: list[str]) -> None:
    assert split_tags(caption) == tags


def test_without_a_trigger_the_caption_is_unchanged() -> None:
    assert put_trigger_first(" a, b ", "") == "a, b"


@given(TAGS)
def test_adding_the_trigger_again_changes_nothing(tags: list[str]) -> None:
    once = put_trigger_first(", ".join(tags), "zorp")
    assert put_trigger_first(once, "zorp") == once
    assert "zorp" in split_tags(once)[0].split()
    assert set(split_tags(once)) == set(tags) | ({"zorp"} if "zorp" in split_tags(once) else set())


# --- drawing ------------------------------------------------------------------------------------


def test_without_shuffle_and_dropout_the_caption_is_unchanged() -> None:
    assert draw_caption("A sentence,  with blanks.", CaptionRule(), random.Random(1)) == "A sentence,  with blanks."


@given(st.integers(0, 1000), st.integers(0, 10))
def test_shuffle_keeps_the_first_tags_and_loses_none(seed: int, keep: int) -> None:
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


def test_every_order_is_equally_likely() -> None:
    rule = CaptionRule(shuffle=True, keep_tokens=1)
    orders = Counter(draw_caption("zorp, a, b, c", rule, random.Random(seed)) for seed in range(6000))
    assert len(orders) == 6
    assert all(abs(count - 1000) < 150 for count in orders.values())  # 5 standard deviations of a fair draw


def test_dropout_happens_at_its_rate() -> None:
    drawn = [draw_caption("a, b", CaptionRule(dropout=0.1), random.Random(seed)) for seed in range(5000)]
    assert abs(drawn.count("") / 5000 - 0.1) < 0.022  # 5 standard deviations
    assert set(drawn) == {"", "a, b"}


def test_caption_dropout_keeps_trigger_word() -> None:
    rule = CaptionRule(dropout=1.0, trigger="zorp")
    assert draw_caption("zorp, red", rule, random.Random(0)) == "zorp"


def test_dropout_does_not_change_the_shuffling() -> None:
    plain = CaptionRule(shuffle=True, keep_tokens=1)
    dropping = CaptionRule(shuffle=True, keep_tokens=1, dropout=0.5)
    pairs = [
        (draw_caption(LONG, plain, random.Random(s)), draw_caption(LONG, dropping, random.Random(s))) for s in range(99)
    ]
    assert all(dropped in ("", kept) for kept, dropped in pairs)


def test_the_caption_rule_comes_from_the_settings() -> None:
    config = TrainConfig(shuffle_captions=True, keep_tokens=2, caption_dropout=0.1)
    assert make_caption_rule(config, "zorp") == CaptionRule(True, 2, 0.1, "zorp")
    config = TrainConfig(
        tag_dropout=0.2,
        keep_tokens_separator="~",
        caption_dropout_every_n_epochs=3,
        drop_trigger=True,
        caption_prefix="p",
        caption_suffix="s",
        caption_wildcards=True,
        caption_lines="random",
        weighted_captions=True,
    )
    assert make_caption_rule(config, "") == CaptionRule(
        keep_tokens=1,
        separator="~",
        tag_dropout=0.2,
        dropout_epochs=3,
        drops_trigger=True,
        prefix="p",
        suffix="s",
        has_wildcards=True,
        lines="random",
        is_weighted=True,
    )


# --- separators, tag dropout, lines, wildcards, prefix and suffix ---------------------------------

VARYING = (
    CaptionRule(shuffle=True),
    CaptionRule(dropout=0.1),
    CaptionRule(tag_dropout=0.1),
    CaptionRule(dropout_epochs=2),
    CaptionRule(has_wildcards=True),
    CaptionRule(lines="random"),
)


def drawn(caption: str, rule: CaptionRule, seed: int = 0, *, lines: tuple[str, ...] = (), epoch: int = 1) -> str:
    return draw_caption(caption, rule, random.Random(seed), lines=lines, epoch=epoch)


@given(st.integers(0, 1000))
def test_tags_outside_the_separators_are_kept_in_place(seed: int) -> None:
    rule = CaptionRule(shuffle=True, tag_dropout=0.5, keep_tokens=9)
    tags = split_tags(drawn("zorp, cat ||| a, b, c ||| best, x", rule, seed))
    assert tags[:2] == ["zorp", "cat"]
    assert tags[-2:] == ["best", "x"]
    assert set(tags[2:-2]) <= {"a", "b", "c"}


def test_the_separator_is_removed_from_the_caption() -> None:
    assert drawn("zorp ||| a, b", CaptionRule()) == "zorp, a, b"
    assert drawn("zorp ~ a", CaptionRule(separator="~")) == "zorp, a"
    assert drawn("zorp ||| a", CaptionRule(separator="")) == "zorp ||| a"


def test_tag_dropout_happens_at_its_rate_and_never_drops_the_trigger() -> None:
    rule = CaptionRule(tag_dropout=0.2, trigger="zorp")
    found = [split_tags(drawn(LONG, rule, seed)) for seed in range(2000)]
    assert all(tags[0] == "zorp" for tags in found)
    counts = Counter(tag for tags in found for tag in tags[1:])
    # 5 standard deviations of a share of 2,000 draws: 5·√(0.8·0.2/2000)
    assert all(abs(counts[tag] / 2000 - 0.8) < 0.045 for tag in "abcdefg")
    assert all(tags == [tag for tag in split_tags(LONG) if tag in tags] for tags in found)  # order stays


def test_kept_tags_are_never_dropped() -> None:
    rule = CaptionRule(tag_dropout=1.0, keep_tokens=3)
    assert drawn(LONG, rule) == "zorp, a, b"


def test_the_trigger_is_dropped_only_with_drop_trigger() -> None:
    kept = CaptionRule(tag_dropout=0.5, keep_tokens=1, trigger="zorp")
    asked = CaptionRule(tag_dropout=0.5, keep_tokens=1, trigger="zorp", drops_trigger=True)
    assert all(drawn(LONG, kept, seed).startswith("zorp") for seed in range(50))
    missing = sum(not drawn(LONG, asked, seed).startswith("zorp") for seed in range(2000))
    assert abs(missing / 2000 - 0.5) < 0.056  # 5 standard deviations
    assert drawn(LONG, CaptionRule(dropout=1.0, trigger="zorp", drops_trigger=True)) == ""


def test_tag_dropout_does_not_change_the_order_of_the_other_tags() -> None:
    for seed in range(50):
        whole = split_tags(drawn(LONG, CaptionRule(shuffle=True, keep_tokens=1), seed))
        some = split_tags(drawn(LONG, CaptionRule(shuffle=True, keep_tokens=1, tag_dropout=0.5), seed))
        assert some == [tag for tag in whole if tag in some]


def test_every_nth_epoch_has_no_captions() -> None:
    rule = CaptionRule(dropout_epochs=3)
    assert [drawn("a", rule, epoch=epoch) for epoch in range(1, 7)] == ["a", "a", "", "a", "a", ""]


def test_lines_are_joined_or_the_first_is_used_or_one_is_drawn_uniformly() -> None:
    lines = ("a cat", "a dog", "a bird")
    assert drawn("all", CaptionRule(), lines=lines) == "all"
    assert drawn("all", CaptionRule(lines="first"), lines=lines) == "a cat"
    assert drawn("one", CaptionRule(lines="random")) == "one"
    counts = Counter(drawn("all", CaptionRule(lines="random"), seed, lines=lines) for seed in range(3000))
    assert set(counts) == set(lines)
    assert all(abs(count - 1000) < 130 for count in counts.values())  # 5 standard deviations


def test_wildcards_choose_uniformly_and_double_braces_become_braces() -> None:
    counts = Counter(resolve_wildcards("a {red|green|} hat", random.Random(seed)) for seed in range(3000))
    assert set(counts) == {"a red hat", "a green hat", "a  hat"}
    assert all(abs(count - 1000) < 130 for count in counts.values())  # 5 standard deviations
    assert resolve_wildcards("{{x|y}} {z}", random.Random(0)) == "{x|y} z"
    assert resolve_wildcards("{a|{b|c} d}", random.Random(3)) in ("a", "b d", "c d")
    assert resolve_wildcards("unpaired { brace", random.Random(0)) == "unpaired { brace"
    assert drawn("{a|a}", CaptionRule()) == "{a|a}"


def test_tags_from_a_wildcard_are_shuffled_one_by_one() -> None:
    rule = CaptionRule(shuffle=True, has_wildcards=True)
    assert {drawn("{a, b|a, b}", rule, seed) for seed in range(20)} == {"a, b", "b, a"}


def test_prefix_and_suffix_are_never_shuffled_or_dropped() -> None:
    rule = CaptionRule(shuffle=True, tag_dropout=1.0, keep_tokens=1, prefix="a photo of", suffix=", best quality")
    assert drawn("zorp, a, b", rule) == "a photo of zorp, best quality"
    assert drawn("zorp", CaptionRule(prefix="x,", suffix="by night")) == "x, zorp by night"
    assert drawn("zorp", CaptionRule(dropout=1.0, prefix="x,", trigger="zorp")) == "zorp"


def test_a_concepts_settings_override_those_of_the_run() -> None:
    config = TrainConfig(
        shuffle_captions=True, keep_tokens=3, caption_dropout=0.1, tag_dropout=0.2, caption_prefix="p,"
    )
    assert make_caption_rule(config, "zorp", Concept()) == make_caption_rule(config, "zorp")
    own = Concept(
        own_shuffle="off",
        own_keep_tokens=0,
        own_caption_dropout=0.0,
        own_tag_dropout=0.0,
        own_suffix=", s",
        own_prefix="q,",
    )
    assert make_caption_rule(config, "zorp", own) == CaptionRule(trigger="zorp", prefix="q,", suffix=", s")
    assert make_caption_rule(TrainConfig(), "", Concept(own_shuffle="on")).shuffle


def test_a_weighted_group_is_one_tag() -> None:
    rule = CaptionRule(shuffle=True, is_weighted=True)
    assert all("(a, b:1.2)" in drawn("(a, b:1.2), c, d", rule, seed) for seed in range(20))
    assert split_tags("(a, b:1.2), c") == ["(a", "b:1.2)", "c"]


def test_only_a_rule_without_variation_is_fixed() -> None:
    assert CaptionRule(prefix="p", lines="first", keep_tokens=3).is_fixed
    assert not any(rule.is_fixed for rule in VARYING)
