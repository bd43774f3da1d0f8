"""Captions of many images in one file: kohya's fine-tuning metadata and diffusers' metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.caption_lists import read_caption_list
from lib_lora_train.dataset.scan import read_dataset
from lib_lora_train.formats.kohya.importer import from_script
from lib_lora_train.formats.kohya.read_files import read_settings
from lib_lora_train.formats.metadata import shareable_config


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "fox"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.d.png")):
        Image.new("RGB", (64, 64), (60 * number, 0, 9)).save(folder / name)
    return folder


def captions(folder: Path, caption_file: str, **values: Any) -> dict[str, str]:
    config = TrainConfig(concepts=(Concept(str(folder), caption_file=caption_file),), **values)
    return {item.image.path.name: item.caption for item in read_dataset(config).items}


_EXPECTED = {"a.png": "a fox, red, big", "b.png": "tags only", "c.d.png": "two words"}


@pytest.mark.parametrize("spelling", ["name", "stem", "absolute", "absolute stem", "windows", "moved"])
def test_kohyas_metadata_is_read_however_it_names_images(images: Path, spelling: str) -> None:
    def spelt(name: str) -> str:
        path = {"moved": Path("/elsewhere") / name}.get(spelling, images / name)
        full = spelling in ("absolute", "absolute stem", "moved", "windows")
        text = path.as_posix() if full else name
        text = text.removesuffix(".png") if "stem" in spelling else text
        return text.replace("/", "\\") if spelling == "windows" else text

    table = {
        spelt("a.png"): {"caption": "a fox", "tags": "red, big", "image_size": [64, 64]},
        spelt("b.png"): {"tags": "tags only"},
        spelt("c.d.png"): {"caption": "two words"},
    }
    (images / "meta.json").write_text(json.dumps(table), encoding="utf-8")
    assert captions(images, "meta.json") == _EXPECTED
    dataset = read_dataset(TrainConfig(concepts=(Concept(str(images), caption_file="meta.json"),)))
    assert dataset.problems == ()


@pytest.mark.parametrize(
    ("name_key", "caption_key"), [("image_path", "caption"), ("file_name", "text"), ("file_name", "prompt")]
)
def test_lines_of_sd_scripts_and_diffusers_are_read(images: Path, name_key: str, caption_key: str) -> None:
    lines = [
        {name_key: "a.png", caption_key: "a fox", "tags": ["red", "big"]},
        {name_key: "./b.png", caption_key: "tags only"},
        {name_key: "c.d.png", caption_key: "two words"},
    ]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    assert captions(images, "metadata.jsonl") == _EXPECTED
    assert captions(images, str(images / "metadata.jsonl")) == _EXPECTED


def test_a_line_of_jsonl_ends_at_a_line_feed_only(images: Path) -> None:
    """JSON allows the other line breaks of Unicode inside a text, as they are."""
    line = json.dumps({"file_name": "1.png", "text": "a fox\u2028in snow"}, ensure_ascii=False)
    (images / "metadata.jsonl").write_bytes(f"{line}\r\n".encode())
    assert read_caption_list(images / "metadata.jsonl").captions["1.png"].lines == ("a fox", "in snow")


def test_only_listed_images_are_used_and_the_others_are_named(images: Path) -> None:
    (images / "meta.json").write_text('{"a": {"caption": "x"}}', encoding="utf-8")
    dataset = read_dataset(TrainConfig(concepts=(Concept(str(images), caption_file="meta.json"),)))
    assert [item.image.path.name for item in dataset.items] == ["a.png"]
    assert any("2 images are not used" in p.message and "b.png" in p.message for p in dataset.problems)


def test_images_of_the_same_name_are_told_apart(images: Path, tmp_path: Path) -> None:
    other = tmp_path / "cat" / "a.png"
    other.parent.mkdir()
    Image.new("RGB", (64, 64), "red").save(other)
    table = {str(images / "a.png"): {"caption": "fox"}, str(other): {"caption": "cat"}}
    (tmp_path / "meta.json").write_text(json.dumps(table), encoding="utf-8")
    assert captions(images, str(tmp_path / "meta.json")) == {"a.png": "fox"}
    assert captions(other.parent, str(tmp_path / "meta.json")) == {"a.png": "cat"}


def test_a_caption_of_several_lines_has_lines(images: Path) -> None:
    (images / "meta.json").write_text('{"a.png": {"caption": "one, a\\ntwo, b"}}', encoding="utf-8")
    config = TrainConfig(concepts=(Concept(str(images), caption_file="meta.json"),))
    assert read_dataset(config).items[0].lines == ("one, a", "two, b")


def test_the_trigger_comes_first_in_listed_captions_too(images: Path) -> None:
    (images / "meta.json").write_text('{"a.png": "red"}', encoding="utf-8")
    config = TrainConfig(concepts=(Concept(str(images), trigger="zorp", caption_file="meta.json"),))
    assert read_dataset(config).items[0].caption == "zorp, red"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.json", "{", "is not valid JSON"),
        ("m.json", "[1]", "is not a table of images"),
        ("m.json", '{"a": 3}', "has no caption for a"),
        ("m.json", "{}", "has no captions"),
        ("m.jsonl", '{"caption": "x"}', "names no image in line 1"),
        ("m.jsonl", "3", "names no image in line 1"),
        ("m.jsonl", "", "has no captions"),
        ("gone.json", None, "cannot be read"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(images: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (images / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        captions(images, name)
    assert name in str(caught.value)


# --- from kohya ------------------------------------------------------------------------------------


def test_metadata_of_a_dataset_file_is_imported(images: Path, tmp_path: Path) -> None:
    table = {str(images / name): {"caption": f"of {name}"} for name in ("a.png", "b.png")}
    (tmp_path / "meta.json").write_text(json.dumps(table), encoding="utf-8")
    text = '[[datasets]]\n[[datasets.subsets]]\nmetadata_file = "meta.json"\nnum_repeats = 3\n'
    (tmp_path / "d.toml").write_text(text, encoding="utf-8")
    imported = read_settings(tmp_path / "d.toml")
    expected = Concept(str(images), repeats=3, caption_file=str(tmp_path / "meta.json"))
    assert imported.config.concepts == (expected,)
    assert [item.caption for item in read_dataset(imported.config).items] == ["of a.png", "of b.png"]


def test_in_json_is_the_list_of_the_training_folder() -> None:
    config = from_script({"network_dim": 4, "train_data_dir": "img", "in_json": "m.json", "dataset_repeats": 5}).config
    assert config.concepts == (Concept("img", repeats=5, caption_file="m.json"),)


def test_the_path_of_a_list_is_not_shared() -> None:
    config = TrainConfig(concepts=(Concept("/home/mia/fox", caption_file="/home/mia/meta.json"),))
    (concept,) = shareable_config(config)["concepts"]
    assert concept["caption_file"] == "meta.json"
