"""Regularisation images: what is drawn, from what, and that nothing is drawn twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lib_lora_train.cli.main import main
from lib_lora_train.config.sample_prompts import SamplePrompt
from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.control import Control, RunStoppedError
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.events import Progress
from lib_lora_train.core.generators import result_of
from lib_lora_train.dataset.plan import Plan
from lib_lora_train.dataset.planner import make_plan
from lib_lora_train.dataset.scan import read_dataset
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.images.regularisation_images import (
    RegularisationImages,
    Wanted,
    draw_regularisation_images,
    wanted_images,
)
from lib_lora_train.sampling.infotext import read_infotext
from lib_lora_train.sampling.sample import sample_images

CONFIG = TrainConfig(resolution=128, min_bucket=64, max_bucket=192, sample_steps=2, sample_cfg=3.0, seed=7)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """The embedded model."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("lora"), "cpu")


def dataset(folder: Path, **concept: Any) -> tuple[Plan, TrainConfig]:
    """Two square images and a wide one, with captions."""
    for name, size, caption in (
        ("1", (128, 128), "zorp, red background"),
        ("2", (128, 128), "zorp"),
        ("3", (300, 100), "a zorp in the rain"),
    ):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    values = {"trigger": "zorp", "class_word": "dog", **concept}
    config = CONFIG.replace(concepts=(Concept(folder=str(folder), **values),))
    return make_plan(read_dataset(config), config), config


def draw(host: StandaloneHost, folder: Path, wanted: list[Wanted], **values: Any) -> RegularisationImages:
    return result_of(
        draw_regularisation_images(
            wanted, CONFIG, host, folder=folder, prompts="class", control=values.get("control", Control())
        )
    )


def test_each_training_image_gets_its_number_in_its_buckets_size(tmp_path: Path) -> None:
    plan, config = dataset(tmp_path / "set")
    sizes = [(place.width, place.height) for place in plan.placements]
    assert len(set(sizes)) == 2
    found = wanted_images(plan, config, prompts="class", per_image=2)
    assert [(one.prompt, one.width, one.height) for one in found] == [("dog", *size) for size in sizes * 2]
    assert wanted_images(plan, config, prompts="class", total=4) == [*found[:3], found[0]]


def test_captions_have_the_class_word_in_the_triggers_place(tmp_path: Path) -> None:
    plan, config = dataset(tmp_path / "set")
    found = wanted_images(plan, config, prompts="captions")
    assert [one.prompt for one in found] == ["dog, red background", "dog", "a dog in the rain"]


def test_without_a_class_word_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    plan, config = dataset(tmp_path / "set", class_word="")
    with pytest.raises(DataError, match=r"no class word to draw\. Set class_word"):
        wanted_images(plan, config, prompts="class")


def test_images_are_the_models_own_by_ddim_from_fixed_seeds_without_negative_prompt(
    tmp_path: Path, host: StandaloneHost
) -> None:
    """Equal to the sampler called directly with the same batch, in all bits."""
    found = draw(host, tmp_path, [Wanted("dog", 128, 128)] * 2)
    (folder,) = found.folders
    paths = sorted(folder.glob("*.png"))
    assert [path.stem.rpartition("-")[2] for path in paths] == ["7", "8"]
    prompts = [SamplePrompt("dog", "", 128, 128, seed, 2, 3.0) for seed in (7, 8)]
    with host.lease(host.load_model(CONFIG)) as model:
        expected = sample_images(model, prompts, sampler="DDIM", clip_skip=1)
    for path, image in zip(paths, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(image))
        assert path.with_suffix(".txt").read_text(encoding="utf-8") == "dog\n"
        text = read_infotext(path) or ""
        assert "Sampler: DDIM" in text and "Negative prompt" not in text


def test_what_is_there_is_kept_and_only_the_rest_is_drawn(tmp_path: Path, host: StandaloneHost) -> None:
    first = draw(host, tmp_path, [Wanted("dog", 64, 64)] * 2)
    before = {path.name: path.read_bytes() for path in first.folders[0].iterdir()}
    second = draw(host, tmp_path, [Wanted("dog", 64, 64)] * 3)
    assert (second.drawn, second.kept) == (1, 2)
    assert {name: (second.folders[0] / name).read_bytes() for name in before} == before


def test_an_image_that_was_thrown_out_is_replaced_by_the_next_seed(tmp_path: Path, host: StandaloneHost) -> None:
    (folder,) = draw(host, tmp_path, [Wanted("dog", 64, 64)] * 2).folders
    bad = min(folder.glob("*.png"))
    bad.unlink()
    again = draw(host, tmp_path, [Wanted("dog", 64, 64)] * 2)
    assert (again.drawn, again.kept) == (1, 1)
    assert not bad.exists()
    assert [path.stem.rpartition("-")[2] for path in sorted(folder.glob("*.png"))] == ["8", "9"]


def test_a_damaged_image_and_a_missing_caption_are_made_again(tmp_path: Path, host: StandaloneHost) -> None:
    (folder,) = draw(host, tmp_path, [Wanted("dog", 64, 64)] * 2).folders
    first, second = sorted(folder.glob("*.png"))
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    second.with_suffix(".txt").unlink()
    again = draw(host, tmp_path, [Wanted("dog", 64, 64)] * 2)
    assert (again.drawn, again.kept) == (1, 1)
    assert np.asarray(Image.open(first)).shape == (64, 64, 3)
    assert second.with_suffix(".txt").read_text(encoding="utf-8") == "dog\n"


def test_drawing_that_was_stopped_continues_where_it_was(tmp_path: Path, host: StandaloneHost) -> None:
    wanted, control = [Wanted("dog", 64, 64), Wanted("dog", 64, 128)], Control()
    work = draw_regularisation_images(wanted, CONFIG, host, folder=tmp_path, prompts="class", control=control)
    with pytest.raises(RunStoppedError):
        for event in work:
            if isinstance(event, Progress) and event.done == 1:
                control.stop()
    found = draw(host, tmp_path, wanted)
    assert (found.drawn, found.kept) == (1, 1)


def test_another_prompt_has_another_folder_and_odd_characters_are_replaced(
    tmp_path: Path, host: StandaloneHost
) -> None:
    found = draw(host, tmp_path, [Wanted("a/dog: ..", 64, 64), Wanted("cat", 64, 64)])
    assert [path.name for path in found.folders] == ["a_dog", "cat"]
    assert all(path.parent.parent == tmp_path for path in found.folders)


def test_the_command_prints_the_folder_to_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset(tmp_path / "set")
    settings = ["--folder", str(tmp_path / "set"), "--trigger", "zorp", "--class-word", "dog", "--resolution", "64"]
    command = ["regularise", *settings, "--min-bucket", "64", "--sample-steps", "1", "--cpu", "--to", str(tmp_path)]
    assert main([*command, "--total", "2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("2 drawn, 0 already there.") and "is_regularisation = true" in text
    assert main([*command, "--total", "2"]) == 0
    assert capsys.readouterr().out.startswith("0 drawn, 2 already there.")
    assert main([*command, "--per-image", "0"]) == 2
