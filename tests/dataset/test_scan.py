"""Folders are read as kohya users expect, completely, in a fixed order, and nothing is skipped silently."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.config.train_config import Concept
from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset.folder_names import (
    file_name_to_words,
    name_without_date,
    natural_sort_key,
    parse_kohya_name,
)
from lib_lora_train.dataset.scan import Dataset, scan_dataset
from tests.stand_ins.work import calls_of


def _image(path: Path, caption: str | None = None, *, colour: object = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = random.Random(str(path) if colour is None else str(colour))
    Image.new("RGB", (96, 64), tuple(generator.randbytes(3))).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def _scan(*concepts: Concept) -> Dataset:
    return scan_dataset(concepts, ".txt")


def _captions(dataset: Dataset) -> list[str]:
    return [item.caption for item in dataset.items]


def _messages(dataset: Dataset) -> str:
    return "\n".join(map(str, dataset.problems))


# --- folders ------------------------------------------------------------------------------------


def test_kohya_sub_folders_give_repeats_and_class_words(tmp_path: Path) -> None:
    _image(tmp_path / "10_zorp cat" / "1.png")
    _image(tmp_path / "2_red_fox" / "1.png")
    dataset = _scan(Concept(str(tmp_path)))
    assert [(c.name, c.repeats, c.image_count) for c in dataset.concepts] == [
        ("2_red_fox", 2, 1),
        ("10_zorp cat", 10, 1),
    ]
    assert _captions(dataset) == ["red fox", "zorp cat"]
    assert [item.concept for item in dataset.items] == [0, 1]


def test_a_plain_folder_uses_the_repeats_of_the_settings(tmp_path: Path) -> None:
    _image(tmp_path / "cats" / "1.png")
    assert _scan(Concept(str(tmp_path / "cats"), repeats=7)).concepts[0].repeats == 7
    assert _scan(Concept(str(tmp_path / "cats"))).concepts[0].repeats == 1


def test_a_kohya_folder_given_directly_uses_its_repeats_unless_they_are_set(tmp_path: Path) -> None:
    _image(tmp_path / "10_cat" / "1.png")
    (concept,) = _scan(Concept(str(tmp_path / "10_cat"))).concepts
    assert (concept.name, concept.repeats) == ("10_cat", 10)
    (concept,) = _scan(Concept(str(tmp_path / "10_cat"), repeats=3)).concepts
    assert concept.repeats == 3
    assert _captions(_scan(Concept(str(tmp_path / "10_cat")))) == ["cat"]


def test_images_outside_kohya_folders_are_reported_as_not_read(tmp_path: Path) -> None:
    _image(tmp_path / "10_cat" / "1.png")
    _image(tmp_path / "10_cat" / "deep" / "2.png")
    _image(tmp_path / "loose.png")
    _image(tmp_path / "more" / "3.png")
    _image(tmp_path / "0_none" / "4.png")
    dataset = _scan(Concept(str(tmp_path), repeats=5))
    assert len(dataset.items) == 1
    assert "1 image outside" in _messages(dataset)
    assert "0_none, 10_cat/deep, more (3 images)" in _messages(dataset)
    assert "repeats 5 is not used" in _messages(dataset)


def test_sub_folders_of_a_plain_folder_are_reported_as_not_read(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    _image(tmp_path / "old" / "2.png")
    dataset = _scan(Concept(str(tmp_path)))
    assert len(dataset.items) == 1
    assert "sub-folders not read: old" in _messages(dataset)


def test_folders_of_the_same_name_are_both_read(tmp_path: Path) -> None:
    _image(tmp_path / "a" / "10_cat" / "1.png")
    _image(tmp_path / "b" / "10_cat" / "1.png")
    dataset = _scan(Concept(str(tmp_path / "a"), trigger="zorp"), Concept(str(tmp_path / "b"), trigger="blip"))
    assert [c.name for c in dataset.concepts] == ["10_cat", "10_cat"]
    assert _captions(dataset) == ["zorp cat", "blip cat"]


def test_a_folder_given_twice_is_reported(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    dataset = _scan(Concept(str(tmp_path)), Concept(str(tmp_path)))
    assert len(dataset.items) == 2
    assert "given twice" in _messages(dataset)


@pytest.mark.parametrize("date", ["2023", "202401", "240131", "20240131", "31012024"])
def test_a_date_read_as_repeats_is_refused_with_the_right_reading(tmp_path: Path, date: str) -> None:
    folder = tmp_path / f"{date}_my_holiday"
    _image(folder / "1.png")
    with pytest.raises(DataError, match=r"probably a date: rename the folder to 1_my_holiday, or enter this folder"):
        _scan(Concept(str(tmp_path)))
    with pytest.raises(DataError, match="set its repeats to 1"):
        _scan(Concept(str(folder)))
    assert _scan(Concept(str(folder), repeats=1)).concepts[0].repeats == 1


@pytest.mark.parametrize(("number", "is_refused"), [(100, False), (1500, False), (10_000, False), (10_001, True)])
def test_a_number_that_is_no_date_is_refused_only_above_the_limit_of_repeats(
    tmp_path: Path, number: int, is_refused: bool
) -> None:
    _image(tmp_path / f"{number}_cat" / "1.png")
    if is_refused:
        with pytest.raises(DataError, match="At most 10,000 are possible"):
            _scan(Concept(str(tmp_path)))
    else:
        assert _scan(Concept(str(tmp_path))).concepts[0].repeats == number


def test_all_unusable_folders_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    file = _image(tmp_path / "file.png")
    _image(tmp_path / "nested" / "inner" / "1.png")
    given = [Concept(str(tmp_path / name)) for name in ("none", "empty", "nested")]
    with pytest.raises(DataError) as caught:
        _scan(*given, Concept(str(file)), Concept(""))
    text = str(caught.value)
    assert "none does not exist" in text
    assert "empty contains no images" in text
    assert "file.png is a file" in text
    assert f"but {tmp_path / 'nested' / 'inner'} does. Enter that folder instead" in text
    assert "A concept has no folder" in text


def test_an_empty_list_of_concepts_is_refused() -> None:
    with pytest.raises(DataError, match="No folder"):
        _scan()


# --- files --------------------------------------------------------------------------------------


def test_a_broken_image_is_reported_and_skipped(tmp_path: Path) -> None:
    good = [_image(tmp_path / f"{n}.png") for n in (1, 3)]
    (tmp_path / "2.png").write_bytes(b"broken")
    dataset = _scan(Concept(str(tmp_path)))
    assert [item.image.path for item in dataset.items] == good
    assert [p.where for p in dataset.problems if "skipped" in p.message] == [str(tmp_path / "2.png")]


def test_a_folder_with_only_broken_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "2.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of its images can be read \(2\.png\)"):
        _scan(Concept(str(tmp_path)))


def test_a_sub_folder_with_only_broken_images_does_not_stop_the_others(tmp_path: Path) -> None:
    _image(tmp_path / "1_a" / "1.png")
    (tmp_path / "1_b").mkdir()
    (tmp_path / "1_b" / "1.png").write_bytes(b"broken")
    dataset = _scan(Concept(str(tmp_path)))
    assert [c.name for c in dataset.concepts] == ["1_a"]
    assert "the folder is skipped" in _messages(dataset)


def test_images_are_in_natural_order(tmp_path: Path) -> None:
    for name in ("pic10.png", "pic2.png", "Pic1.png", "b.png", "A.png"):
        _image(tmp_path / name)
    names = [item.image.path.name for item in _scan(Concept(str(tmp_path))).items]
    assert names == ["A.png", "b.png", "Pic1.png", "pic2.png", "pic10.png"]


def test_hidden_files_are_ignored_and_extensions_may_be_upper_case(tmp_path: Path) -> None:
    _image(tmp_path / "A.PNG", "a hat")
    _image(tmp_path / ".hidden.png")
    (tmp_path / "._A.PNG").write_bytes(b"macOS keeps attributes here")
    dataset = _scan(Concept(str(tmp_path)))
    assert [item.image.path.name for item in dataset.items] == ["A.PNG"]
    assert dataset.problems == ()


def test_unsupported_image_formats_are_reported(tmp_path: Path) -> None:
    _image(tmp_path / "1.png")
    (tmp_path / "2.HEIC").write_bytes(b"")
    assert "not read: 2.HEIC" in _messages(_scan(Concept(str(tmp_path))))


def test_the_same_image_under_two_names_is_reported(tmp_path: Path) -> None:
    _image(tmp_path / "1.png", colour="same")
    _image(tmp_path / "2.png", colour="same")
    assert "2.png is the same image as" in _messages(_scan(Concept(str(tmp_path))))


def test_the_work_of_a_scan_is_linear_in_the_images(tmp_path: Path) -> None:
    content = _image(tmp_path / "0.png").read_bytes()

    def scan_of(images: int) -> int:
        folder = tmp_path / str(images)
        folder.mkdir()
        for number in range(images):
            (folder / f"{number}.png").write_bytes(content)
            (folder / f"{number}.txt").write_text("zorp")
        return calls_of(lambda: _scan(Concept(str(folder))))

    assert scan_of(400) < 2.2 * scan_of(200)


# --- captions -----------------------------------------------------------------------------------


def test_captions_get_the_trigger_but_not_those_of_regularisation(tmp_path: Path) -> None:
    _image(tmp_path / "a" / "1.png", "red hat")
    _image(tmp_path / "b" / "1.png", "a cat")
    own = Concept(str(tmp_path / "a"), trigger="zorp")
    regularisation = Concept(str(tmp_path / "b"), trigger="zorp", is_regularisation=True)
    dataset = _scan(own, regularisation)
    assert _captions(dataset) == ["zorp, red hat", "a cat"]
    assert [(c.trigger, c.is_regularisation) for c in dataset.concepts] == [("zorp", False), ("", True)]


@pytest.mark.parametrize(
    ("folder", "name", "concept", "caption"),
    [
        ("my cats", "IMG_2041", Concept(trigger="zorp", class_word="cat"), "zorp cat"),
        ("my cats", "IMG_2041", Concept(trigger="zorp"), "zorp"),
        ("my cats", "IMG_2041", Concept(class_word="cat"), "cat"),
        ("10_cat", "IMG_2041", Concept(trigger="zorp"), "zorp cat"),
        ("10_zorp cat", "IMG_2041", Concept(trigger="zorp"), "zorp cat"),
        ("10_cat", "IMG_2041", Concept(class_word="dog"), "dog"),
        ("my_cats", "IMG_2041", Concept(), "my cats"),
        ("my_cats", "a red fox (2)", Concept(), "a red fox"),
    ],
)
def test_a_missing_caption_is_replaced_by_trigger_class_word_or_name(
    tmp_path: Path, folder: str, name: str, concept: Concept, caption: str
) -> None:
    _image(tmp_path / folder / f"{name}.png")
    given = Concept(str(tmp_path / folder), trigger=concept.trigger, class_word=concept.class_word)
    dataset = _scan(given)
    assert _captions(dataset) == [caption]
    assert repr(caption) in _messages(dataset)


def test_an_empty_caption_file_is_reported_and_replaced(tmp_path: Path) -> None:
    _image(tmp_path / "1.png", " \n")
    _image(tmp_path / "2.png", "a hat")
    dataset = _scan(Concept(str(tmp_path), trigger="zorp"))
    assert _captions(dataset) == ["zorp", "zorp, a hat"]
    assert "1 image has an empty caption file (1.png); used instead: 'zorp'" in _messages(dataset)


def test_a_caption_that_is_not_utf8_is_used_and_reported(tmp_path: Path) -> None:
    _image(tmp_path / "1.png").with_suffix(".txt").write_bytes(b"K\xe4fer")
    dataset = _scan(Concept(str(tmp_path)))
    assert _captions(dataset) == ["Käfer"]
    assert "1.txt is not UTF-8" in _messages(dataset)


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("10_cat", (10, "cat")),
        ("3_zorp red_cat", (3, "zorp red cat")),
        ("5_", (5, "")),
        ("0_cat", None),
        ("-1_cat", None),
        ("10", None),
        ("cat_10", None),
    ],
)
def test_kohya_names_give_repeats_and_words(name: str, found: tuple[int, str] | None) -> None:
    assert parse_kohya_name(name) == found


@pytest.mark.parametrize(
    ("stem", "words"),
    [("a red fox", "a red fox"), ("a_red_fox-03", "a red fox"), ("IMG_2041", ""), ("fox", ""), ("00012-1234567", "")],
)
def test_file_names_are_captions_only_if_they_read_like_one(stem: str, words: str) -> None:
    assert file_name_to_words(stem) == words


def test_natural_sort_keys_of_different_names_differ() -> None:
    assert natural_sort_key("a01") != natural_sort_key("a1")
    assert natural_sort_key("A") != natural_sort_key("a")


def test_the_class_word_can_replace_all_captions(tmp_path: Path) -> None:
    _image(tmp_path / "cats" / "1.png", "a long caption")
    _image(tmp_path / "cats" / "2.png")
    folder = str(tmp_path / "cats")
    assert _captions(_scan(Concept(folder, class_word="cat", only_class_word=True))) == ["cat", "cat"]
    assert _captions(_scan(Concept(folder, class_word="cat", trigger="zorp", only_class_word=True))) == ["zorp cat"] * 2
    assert _captions(_scan(Concept(folder, class_word="cat"))) == ["a long caption", "cat"]


def test_every_line_of_a_caption_gets_the_trigger(tmp_path: Path) -> None:
    _image(tmp_path / "cats" / "1.png", "red, hat\n\nblue, zorp")
    (item,) = _scan(Concept(str(tmp_path / "cats"), trigger="zorp")).items
    assert item.caption == "zorp, red, hat, blue"
    assert item.lines == ("zorp, red, hat", "zorp, blue")
    (plain,) = _scan(Concept(str(tmp_path / "cats"))).items
    assert plain.lines == ("red, hat", "blue, zorp")


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("20240131_holiday", "1_holiday"),
        ("2024_01_31_red_hat", "1_red_hat"),
        ("202401_31_x", "1_x"),
        ("2024_01", "1_images"),
        ("2024_5_cats", "1_5_cats"),
        ("20240131_12_cats", "1_12_cats"),
        ("10_01_cat", ""),
    ],
)
def test_a_date_in_a_folders_name_is_left_out_whole(name: str, better: str) -> None:
    assert name_without_date(name) == better


def test_images_that_cannot_be_read_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of its images can be read \(a\.png\)\. .*a\.png cannot be decoded: .+"):
        _scan(Concept(folder=str(tmp_path)))
