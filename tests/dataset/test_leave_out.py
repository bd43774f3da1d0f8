"""Tags and images that a run leaves out by its settings: the files do not change, and the plan says what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.config.validation.validate import validate
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import read_dataset
from tests.stand_ins.ui import write_images

CAPTIONS = ("zkw, Horns, red_hair, smile", "zkw, horns ||| hat, smile", "zkw, saber \\(fate\\), hornsman", "zkw, a hat")


def make_config(folder: Path, captions: tuple[str, ...] = CAPTIONS, trigger: str = "zkw") -> TrainConfig:
    write_images(folder, len(captions))
    for number, caption in enumerate(captions):
        (folder / f"{number:03}.txt").write_text(caption, encoding="utf-8")
    concepts = (Concept(str(folder), trigger=trigger),)
    return TrainConfig(concepts=concepts, resolution=64, min_bucket=64)


def plan_without(config: TrainConfig, *tags: str, images: tuple[str, ...] = ()) -> Plan:
    return make_plan(read_dataset(config), config.replace(leave_out_tags=tags, leave_out_images=images))


def captions_of(plan: Plan) -> list[str]:
    return [item.caption for item in plan.dataset.items]


def about(plan: Plan, setting: str) -> list[str]:
    return [f"{p.level}: {p.message}" for p in plan.warnings if p.where == setting]


def test_a_tag_is_left_out_of_every_caption_and_no_other_text_changes(tmp_path: Path) -> None:
    config = make_config(tmp_path / "set")
    files = {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    plan = plan_without(config, "horns")
    assert captions_of(plan) == [
        "zkw, red_hair, smile",
        "zkw ||| hat, smile",
        "zkw, saber \\(fate\\), hornsman",
        "zkw, a hat",
    ]
    assert about(plan, "leave_out_tags") == ["hint: Left out of this run's captions: horns (2 captions)."]
    assert {path: path.read_bytes() for path in (tmp_path / "set").iterdir()} == files


@pytest.mark.parametrize("pattern", ["Saber (Fate)", "saber_(fate)", "saber \\(fate\\)", "saber*", " saber  (fate) "])
def test_case_underscores_and_escapes_do_not_matter(pattern: str, tmp_path: Path) -> None:
    plan = plan_without(make_config(tmp_path / "set"), pattern)
    assert captions_of(plan)[2] == "zkw, hornsman"


def test_each_line_of_a_caption_is_pruned(tmp_path: Path) -> None:
    (item,) = plan_without(make_config(tmp_path / "set", ("zkw, horns\nzkw, horns, hat",)), "horns").dataset.items
    assert item.lines == ("zkw", "zkw, hat") and "horns" not in item.caption


def test_a_weighted_tag_is_known_by_its_name_if_weights_are_read(tmp_path: Path) -> None:
    config = make_config(tmp_path / "set", ("zkw, (horns:1.2), [hat]",))
    assert captions_of(plan_without(config, "horns", "hat")) == ["zkw, (horns:1.2), [hat]"]
    assert captions_of(plan_without(config.replace(weighted_captions=True), "horns", "hat")) == ["zkw"]


def test_images_are_left_out_by_name_folder_and_pattern(tmp_path: Path) -> None:
    config = make_config(tmp_path / "10_set")
    for pattern, left in (("001.png", 3), ("10_set/001.png", 3), ("*.png", 0), ("00[1].png", 4), ("set/001.png", 4)):
        if left == 0:
            with pytest.raises(DataError, match="leave_out_images leaves no image"):
                plan_without(config, images=(pattern,))
            continue
        plan = plan_without(config, images=(pattern,))
        assert (len(plan.dataset.items), plan.dataset.concepts[0].image_count) == (left, left), pattern
    plan = plan_without(config, images=("001.png", "003.PNG"))
    assert about(plan, "leave_out_images") == ["hint: 2 images are left out: 001.png, 003.png."]


def test_an_entry_that_fits_nothing_is_named_with_what_was_meant(tmp_path: Path) -> None:
    plan = plan_without(make_config(tmp_path / "set"), "hornz", images=("01.png",))
    assert about(plan, "leave_out_tags") == ["warning: 'hornz' fits no tag of the dataset. Did you mean 'Horns'?"]
    (text,) = about(plan, "leave_out_images")
    assert text.startswith("warning: '01.png' fits no image of the dataset. Did you mean '0")


@pytest.mark.parametrize("pattern", ["zkw", "ZKW", "z*"])
def test_the_trigger_cannot_be_left_out(pattern: str, tmp_path: Path) -> None:
    config = make_config(tmp_path / "set").replace(leave_out_tags=(pattern,))
    (problem,) = [problem for problem in validate(config) if problem.level == "error"]
    assert problem.where == "leave_out_tags" and "the trigger 'zkw'" in problem.message
    assert all(caption.startswith("zkw") for caption in captions_of(plan_without(config, pattern)))


def test_captions_that_become_empty_are_named(tmp_path: Path) -> None:
    plan = plan_without(make_config(tmp_path / "set", ("hat", "hat, coat"), trigger=""), "hat")
    assert captions_of(plan) == ["", "coat"]
    assert "hint: The captions of 000.png are empty without these tags." in about(plan, "leave_out_tags")


def test_the_validation_images_are_pruned_too_and_left_out_images_are_never_held_out(tmp_path: Path) -> None:
    config = make_config(tmp_path / "set").replace(validation_share=0.5)
    plan = plan_without(config, "smile", images=("003.png",))
    assert plan.validation is not None
    items = (*plan.dataset.items, *plan.validation.dataset.items)
    assert sorted(item.image.path.name for item in items) == ["000.png", "001.png", "002.png"]
    assert not any("smile" in item.caption for item in items)


def test_nothing_to_leave_out_changes_nothing(tmp_path: Path) -> None:
    config = make_config(tmp_path / "set")
    dataset = read_dataset(config)
    assert make_plan(dataset, config).dataset.items == dataset.items
