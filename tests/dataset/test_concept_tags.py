"""The tags of each trigger's captions, and the prompts that they are drawn with."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.dataset.concept_tags import ConceptTags, concept_tags
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import read_dataset


def _counted(tmp_path: Path, *concepts: tuple[Concept, tuple[str, ...]], **values: object) -> list[ConceptTags]:
    made = []
    for number, (concept, captions) in enumerate(concepts):
        folder = tmp_path / str(number)
        folder.mkdir()
        for n, caption in enumerate(captions):
            Image.new("RGB", (64, 64), (40 * n, 20 * number, 0)).save(folder / f"{n}.png")
            (folder / f"{n}.txt").write_text(caption, encoding="utf-8")
        made.append(concept.__class__(**{**vars(concept), "folder": str(folder)}))
    config = TrainConfig(concepts=tuple(made), resolution=64, min_bucket=64, **values)  # type: ignore[arg-type]
    return list(concept_tags(make_plan(read_dataset(config), config), config))


def test_tags_are_counted_whatever_their_case_without_the_trigger(tmp_path: Path) -> None:
    (one,) = _counted(tmp_path, (Concept("", trigger="zok"), ("zok, Hat, beach", "hat, hat", "Zok on a chair, sun")))
    assert (one.trigger, one.name, len(one.items)) == ("zok", "zok", 3)
    assert {tag: len(items) for tag, items in one.tags.items()} == {
        "Hat": 2,
        "beach": 1,
        "Zok on a chair": 1,
        "sun": 1,
    }


def test_every_trigger_has_its_own_tags_and_regularisation_has_none(tmp_path: Path) -> None:
    found = _counted(
        tmp_path,
        (Concept("", trigger="zok"), ("hat",)),
        (Concept("", is_regularisation=True), ("cat, hat",)),
        (Concept("", trigger="vey"), ("hat, sun",)),
    )
    assert [(one.trigger, list(one.tags)) for one in found] == [("zok", ["hat"]), ("vey", ["hat", "sun"])]


def test_without_a_trigger_the_class_word_is_in_its_place(tmp_path: Path) -> None:
    (one,) = _counted(tmp_path, (Concept("", class_word="cat"), ("hat",)))
    assert (one.trigger, one.name, one.prompt("hat")) == ("", "cat", "cat, hat")


@pytest.mark.parametrize(
    ("name", "tag", "prompt"),
    [
        ("zok", "hat", "zok, hat"),
        ("zok", "zok on a chair", "zok on a chair"),
        ("", "hat", "hat"),
        ("zok", "saber (fate)", r"zok, saber \(fate\)"),
        ("zok", r"saber \(fate\)", r"zok, saber \(fate\)"),
    ],
)
def test_a_tag_is_drawn_with_its_trigger_and_its_brackets_set_no_weights(name: str, tag: str, prompt: str) -> None:
    assert ConceptTags(name, name, (0,), {tag: (0,)}).prompt(tag) == prompt
