"""Captions from taggers: which tags are kept, how existing captions are treated, and WD14's input."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_lora_train.core.errors import DataError, ModelError
from lib_lora_train.dataset.images import read_upright_image
from lib_lora_train.dataset_tools.caption_files import load_captions, write_plan, write_undo
from lib_lora_train.dataset_tools.tagger import (
    ScoredTag,
    TaggerResult,
    TagRule,
    make_caption,
    merge_captions,
    numbers_to_tag,
    plan_tags,
)
from lib_lora_train.dataset_tools.wd14 import load_wd14, prepare_input, read_labels
from tests.stand_ins.tiny_onnx import write_wd14
from tests.stand_ins.ui import write_images

FOUND = TaggerResult(
    (
        ScoredTag("general", 0.99, "rating"),
        ScoredTag("1girl", 0.98),
        ScoredTag("long_hair", 0.5),
        ScoredTag("^_^", 0.4),
        ScoredTag("hat", 0.35),
        ScoredTag("rain", 0.34),
        ScoredTag("saber_(fate)", 0.9, "character"),
        ScoredTag("lancer", 0.84, "character"),
    )
)


@pytest.mark.parametrize(
    ("rule", "caption"),
    [
        (TagRule(), "saber (fate), 1girl, long hair, ^_^, hat"),
        (TagRule(general_threshold=0.5, character_threshold=0.5), "saber (fate), lancer, 1girl, long hair"),
        (TagRule(general_threshold=1.0, character_threshold=0.9, trigger="zkw"), "zkw, saber (fate)"),
        (TagRule(general_threshold=0.9, underscores_to_spaces=False, escape_brackets=True), r"saber_\(fate\), 1girl"),
        (TagRule(general_threshold=0.4, exclude=("Long hair", "saber*")), "1girl, ^_^"),
        (TagRule(exclude=("saber_(fate)", "1GIRL", "?_?", "h*")), "long hair, ^_^"),
        (
            TagRule(trigger="zkw (new)", escape_brackets=True, general_threshold=0.9),
            r"zkw (new), saber \(fate\), 1girl",
        ),
        (TagRule(general_threshold=1.0, character_threshold=1.0, trigger="zkw"), ""),
    ],
)
def test_a_caption_has_the_tags_that_the_rule_keeps_by_descending_score(rule: TagRule, caption: str) -> None:
    assert make_caption(FOUND, rule) == caption


def test_a_sentence_gets_the_trigger_first() -> None:
    said = TaggerResult(sentence="a girl with a hat, standing in rain")
    assert make_caption(said, TagRule(trigger="zkw")) == "zkw, a girl with a hat, standing in rain"
    assert make_caption(said, TagRule(exclude=("standing *",))) == "a girl with a hat"


@pytest.mark.parametrize(
    ("before", "existing", "after"),
    [
        ("", "skip", "zkw, long hair, hat"),
        ("", "append", "zkw, long hair, hat"),
        ("red, Long_Hair", "skip", "red, Long_Hair"),
        ("red, Long_Hair", "append", "zkw, red, Long_Hair, hat"),
        ("red, Long_Hair", "replace", "zkw, long hair, hat"),
        ("one, hat\ntwo", "append", "zkw, one, hat, two, long hair"),
    ],
)
def test_existing_captions_are_skipped_appended_to_or_replaced(before: str, existing: str, after: str) -> None:
    assert merge_captions(before, "zkw, long hair, hat", existing, "zkw") == after  # type: ignore[arg-type]


def test_lines_that_are_captions_are_each_appended_to() -> None:
    after = merge_captions("one, hat\ntwo", "zkw, long hair, hat", "append", "zkw", "random")
    assert after == "zkw, one, hat, long hair\nzkw, two, long hair, hat"


def test_an_image_without_tags_keeps_its_caption() -> None:
    assert merge_captions("red", "", "replace") == "red"


def test_with_skip_only_images_without_a_caption_are_tagged(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 3)
    (folder / "001.txt").unlink()
    captions = load_captions(folder)
    assert numbers_to_tag(captions, range(3), "skip") == [1]
    assert numbers_to_tag(captions, [0, 2], "append") == [0, 2]


def test_tags_are_written_as_one_edit_that_can_be_undone(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 3)
    (folder / "001.txt").unlink()
    captions = load_captions(folder)
    found = {folder / "000.png": FOUND, folder / "001.png": FOUND, folder / "gone.png": FOUND}
    plan = plan_tags(captions, found, TagRule(general_threshold=0.9), "append")
    assert [change.number for change in plan.changes] == [0, 1]
    _, backup = write_plan(plan)
    assert (folder / "000.txt").read_text() == "zkw, image 0, saber (fate), 1girl\n"
    assert (folder / "001.txt").read_text() == "saber (fate), 1girl\n"
    assert backup and write_undo(backup) == 2
    assert (folder / "000.txt").read_text() == "zkw, image 0" and not (folder / "001.txt").exists()


def test_images_that_share_a_caption_file_change_it_once(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 1)
    Image.new("RGB", (8, 8)).save(folder / "000.jpg")
    captions = load_captions(folder)
    found = {caption.image: FOUND for caption in captions.captions}
    assert len(plan_tags(captions, found, TagRule(), "replace").changes) == 1


# --- images and WD14 ------------------------------------------------------------------------------


def test_an_image_is_read_whole_upright_and_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (6, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_upright_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_upright_image(tmp_path / "turned.jpg").size == (4, 6)


def test_a_damaged_image_is_refused_even_if_pillow_is_set_to_fill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "half.jpg"
    Image.effect_noise((64, 64), 50).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)  # as webuis do
    with pytest.raises(DataError, match=r"half\.jpg cannot be decoded"):
        read_upright_image(file)


def test_wd14_input_is_padded_to_a_white_square_in_bgr() -> None:
    """Two rows of red pad to four: white above and below, in the middle red as (0, 0, 255)."""
    expected = np.full((1, 4, 4, 3), 255, np.float32)
    expected[:, 1:3, :, :2] = 0
    made = prepare_input(Image.new("RGB", (4, 2), (255, 0, 0)), 4)
    assert made.dtype == np.float32 and made.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(made, expected)
    assert prepare_input(Image.new("RGB", (30, 90)), 4).shape == (1, 4, 4, 3)


TAGS = [("general", 9), ("1girl", 0), ("long_hair", 0), ("saber_(fate)", 4), ("odd", 7)]


def test_a_wd14_tagger_returns_the_scores_of_its_network(tmp_path: Path) -> None:
    """Against sigmoid(x · W) of the very file, in float64; 1e-5 is float32's rounding over 48 products below 255."""
    pytest.importorskip("onnxruntime")
    weights = write_wd14(tmp_path / "tagger", TAGS)
    image = Image.effect_noise((4, 4), 90).convert("RGB")
    image.putpixel((1, 2), (250, 20, 90))
    values = np.asarray(image, np.float64)[:, :, [2, 1, 0]].reshape(-1)
    expected = 1 / (1 + np.exp(-(values @ weights.astype(np.float64))))
    for place in ("tagger", "tagger/model.onnx"):
        found = load_wd14(tmp_path / place)(image)
        assert [(tag.name, tag.kind) for tag in found.tags] == [
            ("general", "rating"),
            ("1girl", "general"),
            ("long_hair", "general"),
            ("saber_(fate)", "character"),
            ("odd", "general"),
        ]
        np.testing.assert_allclose([tag.score for tag in found.tags], expected, atol=1e-5)


def test_the_input_size_is_read_from_the_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    write_wd14(tmp_path, TAGS, size=7)
    assert len(load_wd14(tmp_path)(Image.new("RGB", (30, 20))).tags) == 5


def test_a_folder_that_is_not_a_wd14_tagger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model\.onnx.*WD14 tagger"):
        load_wd14(tmp_path)
    write_wd14(tmp_path, TAGS)
    (tmp_path / "selected_tags.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ModelError, match="columns name and category"):
        read_labels(tmp_path / "selected_tags.csv")


def test_a_model_that_does_not_match_its_list_or_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tests.stand_ins.tiny_onnx import onnx_bytes

    weights = write_wd14(tmp_path, TAGS)
    labels = tmp_path / "selected_tags.csv"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(ModelError, match="lists 4 tags, but the model scores 5"):
        load_wd14(tmp_path)(Image.new("RGB", (4, 4)))
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(weights, ["images", 3, 4, 4]))
    with pytest.raises(ModelError, match=r"takes .*3, 4, 4.* WD14 taggers take"):
        load_wd14(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"version https://git-lfs")
    with pytest.raises(ModelError, match="cannot be opened as an ONNX model"):
        load_wd14(tmp_path)


def test_without_onnxruntime_the_error_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wd14(tmp_path, TAGS)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="pip install onnxruntime"):
        load_wd14(tmp_path)
