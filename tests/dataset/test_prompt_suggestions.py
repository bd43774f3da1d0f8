"""Prompts that a run writes itself show the concept and, as control prompts, what must not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.sample_prompts import prompt_groups, sample_prompts
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.dataset.images import ImageFile
from lib_lora_train.dataset.prompt_suggestions import suggest_prompts
from lib_lora_train.dataset.scan import Dataset, Item, ScannedConcept


def _groups(*concepts: tuple[Concept, tuple[str, ...]]) -> tuple[list[str], list[str]]:
    """The prompts of both groups for concepts with these captions."""
    config = TrainConfig(concepts=tuple(concept for concept, _ in concepts))
    items = [
        Item(ImageFile(Path(f"{number}-{n}.png"), 64, 64, f"{number}-{n}"), caption, number)
        for number, (_, captions) in enumerate(concepts)
        for n, caption in enumerate(captions)
    ]
    scanned = [ScannedConcept("set", Path("set"), 1, one.trigger, False, 1, one) for one, _ in concepts]
    written = config.replace(sample_prompts=suggest_prompts(config, Dataset(tuple(items), tuple(scanned), ())))
    texts = [prompt.prompt for prompt in sample_prompts(written)]
    groups = prompt_groups(written)
    return [texts[place] for place in groups.concept], [texts[place] for place in groups.control]


def _cat(trigger: str = "zok") -> Concept:
    return Concept("set", trigger=trigger, class_word="cat")


def test_the_concept_is_shown_alone_with_its_most_frequent_tags_and_in_a_new_setting() -> None:
    captions = ("zok, cat, hat, beach", "zok, cat, tree, hat", "zok, cat, hat, tree, sun")
    concept, control = _groups((_cat(), captions))
    assert concept == ["zok, cat", "zok, cat, hat, tree, sun", "zok, cat, in a snowy forest"]
    assert control == ["cat", "dog", "fox", "mountain landscape"]


def test_tags_that_no_caption_has_together_are_not_combined() -> None:
    concept, _ = _groups((_cat(), ("zok, red ground", "zok, blue ground", "zok, red ground, bowl")))
    assert concept[1] == "zok, cat, red ground, bowl"


def test_a_sentence_keeps_its_words() -> None:
    assert _groups((_cat(), ("a photo of a zok cat on grass",)))[0][1] == "a photo of a zok cat on grass"


def test_a_class_that_is_in_the_captions_only_is_found_there() -> None:
    _, control = _groups((Concept("set", trigger="zok"), ("zok, 1girl, hat", "zok, 1girl, tree")))
    assert control == ["1girl", "1boy", "old man", "mountain landscape"]


def test_several_concepts_take_turns_and_none_is_in_the_control_group() -> None:
    dog = Concept("set", trigger="dog")
    concept, control = _groups((_cat(), ("zok, cat, hat",)), (dog, ("dog, tree",)))
    assert concept[:4] == ["zok, cat", "dog", "zok, cat, hat", "dog, tree"] and len(concept) == 6
    assert "cat" in control and not any("dog" in prompt for prompt in control)


def test_a_style_is_shown_on_other_subjects() -> None:
    concept, control = _groups((Concept("set", trigger="zok style", class_word="style"), ("zok style, tree",)))
    assert concept == ["zok style", "zok style, tree", "zok style, bowl of fruit on a table"]
    assert "style" not in control and len(control) == 3


@pytest.mark.parametrize("captions", [("a tree",), ("",)])
def test_without_trigger_and_class_there_are_prompts_but_no_control_prompts(captions: tuple[str, ...]) -> None:
    concept, control = _groups((Concept("set"), captions))
    assert concept and not control
