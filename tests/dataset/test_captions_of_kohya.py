"""Captions of imported runs have the forms that sd-scripts gives them, by an independent enumeration of its rules."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.dataset.caption_augmentation import draw_caption, make_caption_rule, warm_tag_count
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.sample_captions import caption_for_draw, captions_to_cache, fixed_caption_for, step_of_draw
from lib_lora_train.dataset.scan import read_dataset
from lib_lora_train.formats.kohya.importer import from_gui, from_script


def imported(**values: Any) -> TrainConfig:
    return from_script({"network_dim": 4, **values}).config


def drawn(caption: str, config: TrainConfig, *, step: int = 0, lines: tuple[str, ...] = ()) -> set[str]:
    rule = make_caption_rule(config, "", total_steps=100)
    return {draw_caption(caption, rule, random.Random(n), lines=lines, step=step) for n in range(1500)}


def enumerated(caption: str, keep: int, *, separator: str = ",", groups: str = "") -> set[str]:
    """Every order that sd-scripts can give the caption."""
    tags = [tag.strip() for tag in caption.split(separator)]
    orders = itertools.permutations(tags[keep:])
    texts = {", ".join((*tags[:keep], *order)) for order in orders}
    return {text.replace(groups, separator) if groups else text for text in texts}


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
@pytest.mark.parametrize(("prefix", "suffix"), [("zorp,", ""), ("photo of", ""), ("a, b,", ""), ("zorp,", ", hq")])
def test_prefix_and_suffix_count_among_the_kept_tags(keep: int, prefix: str, suffix: str) -> None:
    affixes = {"caption_prefix": prefix} | ({"caption_suffix": suffix} if suffix else {})
    config = imported(**affixes, shuffle_caption=True, keep_tokens=keep)
    assert drawn("red, big, old", config) == enumerated(f"{prefix} red, big, old{suffix}", keep)


def test_our_own_prefix_stays_outside_the_tags() -> None:
    config = TrainConfig(caption_prefix="zorp,", shuffle_captions=True, keep_tokens=0)
    assert all(form.startswith("zorp, ") for form in drawn("red, big, old", config))


@pytest.mark.parametrize("keep", [0, 1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_tags_joined_by_the_second_separator_stay_together(keep: int, shuffle: bool) -> None:
    caption = "zorp, sky;;;cloud;;;day, bird;;;swan, a"
    config = imported(secondary_separator=";;;", shuffle_caption=shuffle, keep_tokens=keep)
    expected = enumerated(caption, keep, groups=";;;") if shuffle else {caption.replace(";;;", ",")}
    assert drawn(caption, config) == expected


def test_joined_tags_are_dropped_together() -> None:
    config = imported(secondary_separator=";;;", caption_tag_dropout_rate=0.5, keep_tokens=1)
    assert drawn("zorp, sky;;;day, a", config) == {"zorp", "zorp, sky,day", "zorp, a", "zorp, sky,day, a"}


@pytest.mark.parametrize("keep", [0, 1])
def test_captions_are_split_at_their_own_separator(keep: int) -> None:
    config = imported(caption_separator=".", shuffle_caption=True, keep_tokens=keep)
    assert drawn("zorp, big. red. old", config) == enumerated("zorp, big. red. old", keep, separator=".")


@pytest.mark.parametrize("least", [0, 1, 2])
@pytest.mark.parametrize("length", [10, 7, 0.5])
@pytest.mark.parametrize("total", [1, 3, 8])
def test_captions_grow_as_in_sd_scripts(least: int, length: float, total: int) -> None:
    config = imported(token_warmup_step=length, token_warmup_min=least, keep_tokens=1)
    rule = make_caption_rule(config, "", total_steps=40)
    steps = math.floor(length * 40) if length < 1 else int(length)
    assert rule.warmup_steps == steps
    for step in range(60):
        expected = total if step >= steps else math.floor(step * Fraction(total - least, steps)) + least
        assert min(warm_tag_count(total, rule, step), total) == min(expected, total)


def test_a_warm_up_takes_the_first_tags_and_then_shuffles() -> None:
    config = imported(token_warmup_step=10, token_warmup_min=1, keep_tokens=1, shuffle_caption=True)
    caption = "zorp, a, b, c, d"
    assert drawn(caption, config, step=0) == {"zorp, a"}
    assert drawn(caption, config, step=5) == enumerated("zorp, a, b", 1)
    assert drawn(caption, config, step=10) == enumerated(caption, 1)


def test_the_first_line_of_a_caption_file_counts_and_with_wildcards_a_random_one() -> None:
    lines = ("one, a", "two, b")
    assert drawn("one, a, two, b", imported(), lines=lines) == {"one, a"}
    assert drawn("one, a, two, b", imported(enable_wildcard=True), lines=lines) == set(lines)
    assert drawn("one, a, two, b", TrainConfig(), lines=lines) == {"one, a, two, b"}


# --- from folders to samples -----------------------------------------------------------------------


def _folder(root: Path, name: str, captions: dict[str, str | None]) -> None:
    (root / name).mkdir(parents=True)
    for number, (stem, caption) in enumerate(captions.items()):
        Image.new("RGB", (64, 64), (number * 40 + len(name), 0, 0)).save(root / name / f"{stem}.png")
        if caption is not None:
            (root / name / f"{stem}.txt").write_text(caption, encoding="utf-8")


def test_folder_words_keep_their_underscores(tmp_path: Path) -> None:
    _folder(tmp_path, "12_big_red_fox", {"0": None, "1": "its own"})
    _folder(tmp_path, "7_", {"0": None})
    config = from_gui({"LoRA_type": "Standard", "train_data_dir": str(tmp_path)}).config
    captions = [item.caption for item in read_dataset(config).items]
    assert sorted(captions) == ["", "big_red_fox", "its own"]
    ours = TrainConfig(concepts=(Concept(str(tmp_path)),))
    assert "big red fox" in [item.caption for item in read_dataset(ours).items]


def test_a_folder_without_caption_and_class_has_empty_captions(tmp_path: Path) -> None:
    _folder(tmp_path, "grey cats", {"a red fox": None})
    config = imported().replace(concepts=(Concept(str(tmp_path / "grey cats")),))
    assert [item.caption for item in read_dataset(config).items] == [""]
    classed = config.replace(concepts=(Concept(str(tmp_path / "grey cats"), class_word="zorp fox"),))
    assert [item.caption for item in read_dataset(classed).items] == ["zorp fox"]


def test_samples_of_a_run_follow_its_warm_up(tmp_path: Path) -> None:
    _folder(tmp_path, "4_fox", {"0": "zorp, a, b, c, d", "1": "zorp, a, b, c, d"})
    config = imported(token_warmup_step=6, keep_tokens=1, train_batch_size=2, max_train_epochs=3, resolution="64")
    config = config.replace(concepts=(Concept(str(tmp_path)),), min_bucket=64, max_bucket=64)
    plan = make_plan(read_dataset(config), config)
    rule = make_caption_rule(config, "", total_steps=plan.total_steps)
    assert [step_of_draw(plan, draw) for draw in range(24)] == [draw // 2 for draw in range(24)]
    for draw in range(24):
        tags = caption_for_draw(plan, 0, draw, config).split(", ")
        assert len(tags) == 1 + warm_tag_count(4, rule, draw // 2)
    assert fixed_caption_for(plan, 0, config) == "zorp, a, b, c, d"
    drawn_ones = {caption_for_draw(plan, 0, draw, config) for draw in range(24)}
    cached = captions_to_cache(plan, config)
    assert cached == [] or set(cached) == drawn_ones


def test_settings_of_captions_that_cannot_work_are_named() -> None:
    wheres = {p.where for p in validate(replace(TrainConfig(), caption_separator="", secondary_separator=""))}
    assert "caption_separator" in wheres
    assert "secondary_separator" in {p.where for p in validate(TrainConfig(secondary_separator=","))}
