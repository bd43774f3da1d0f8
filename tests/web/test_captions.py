"""The Captions panel's server side: filter, pages, edits that say what they touch, undo, words."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools import blocked_words as rude_words
from lib_lora_train.dataset_tools.blocked_words import is_blocked
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.models.loading import load_checkpoint_tokenizer
from lib_lora_train.web.caption_edits import BULK_EDITS, make_edit
from lib_lora_train.web.gallery import IMAGES_PER_PAGE
from lib_lora_train.web.session import Session
from lib_lora_train.web.token_analysis import TokenAnalysis
from tests.stand_ins.ui import open_small_session, write_images


def opened(tmp_path: Path, captions: Mapping[str, str]) -> Session:
    """A session with an open folder of images named by the keys; "" means no caption file."""
    session, _ = open_small_session(tmp_path)
    folder = write_images(tmp_path / "images", len(captions))
    for image, (name, caption) in zip(sorted(folder.glob("*.png")), captions.items(), strict=True):
        image.with_suffix(".txt").unlink()
        image.rename(folder / f"{name}.png")
        if caption:
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    session.save_draft({**session.demo_form(), "concepts": json.dumps([{"folder": str(folder), "trigger": "zkw"}])})
    session.run_action("captions-open", {"folder": str(folder)})
    session.run_action("captions-words", {})  # waits for the tokenizer, which loads in a background thread
    return session


FOUR = {"a": "zkw, red hair, solo", "b": "zkw, blue_hair, solo", "c": "", "d": "dog, zkw"}


def names(answer: Mapping[str, Any]) -> list[str]:
    return [Path(one["name"]).stem for one in answer["images"]]


def texts(tmp_path: Path) -> dict[str, str]:
    return {file.stem: file.read_text(encoding="utf-8").strip() for file in (tmp_path / "images").glob("*.txt")}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"all_of": "zkw, solo"}, ["a", "b"]),
        ({"any_of": "dog, red hair"}, ["a", "d"]),
        ({"none_of": "solo"}, ["c", "d"]),
        ({"text": "blue"}, ["b"]),
        ({"untagged": True}, ["c"]),
        ({"most": "3"}, ["c"]),
        ({"fewest": "1", "any_of": "*hair", "none_of": "red *"}, ["b"]),
    ],
)
def test_filters_are_combined(tmp_path: Path, wanted: dict[str, Any], found: list[str]) -> None:
    session = opened(tmp_path, FOUR)
    assert names(session.run_action("captions-show", {"filter": wanted})) == found


def test_an_invalid_token_limit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="whole numbers"):
        opened(tmp_path, FOUR).run_action("captions-show", {"filter": {"most": "many"}})


def test_tags_are_counted_in_matching_captions(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    assert session.run_action("captions-show", {})["tags"][0] == ["zkw", 3]
    assert dict(session.run_action("captions-show", {"filter": {"all_of": "solo"}})["tags"])["zkw"] == 2


def test_a_page_contains_only_its_images(tmp_path: Path) -> None:
    session = opened(tmp_path, {f"{n:03}": f"tag {n}" for n in range(IMAGES_PER_PAGE + 5)})
    last = session.run_action("captions-show", {"page": 99})
    assert (last["page"], last["pages"], len(last["images"])) == (1, 2, 5)


@pytest.mark.parametrize(("scope", "number"), [("all", 2), ("filtered", 1), ("selected", 1)])
def test_an_edit_changes_exactly_the_captions_that_its_preview_counts(tmp_path: Path, scope: str, number: int) -> None:
    session = opened(tmp_path, FOUR)
    order = {
        "edit": "remove",
        "texts": ["solo"],
        "scope": scope,
        "selected": [1],
        "filter": {"all_of": "blue_hair"},
    }
    before = texts(tmp_path)
    assert session.run_action("captions-preview", order)["number"] == number
    assert texts(tmp_path) == before, "a preview writes nothing"
    session.run_action("captions-apply", order)
    after = texts(tmp_path)
    assert sum(after[name] != before[name] for name in before) == number
    assert after["b"] == "zkw, blue_hair"
    assert session.run_action("captions-undo", {})["undo"] == 0
    assert texts(tmp_path) == before


def test_a_caption_is_saved_as_typed_and_can_be_undone(tmp_path: Path) -> None:
    session = opened(tmp_path, {**FOUR, "d": "one line\nanother"})
    assert session.run_action("captions-save", {"number": 2, "text": "zkw, new"})["tokens"] > 0
    session.run_action("captions-save", {"number": 3, "text": "first\nsecond"})
    assert (texts(tmp_path)["c"], texts(tmp_path)["d"]) == ("zkw, new", "first\nsecond")
    session.run_action("captions-undo", {})
    session.run_action("captions-undo", {})
    assert "c" not in texts(tmp_path), "the new caption file is removed again"
    assert texts(tmp_path)["d"] == "one line\nanother"


def test_undo_without_an_edit_and_browsing_without_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to undo"):
        opened(tmp_path, FOUR).run_action("captions-undo", {})
    session, _ = open_small_session(tmp_path / "other")
    with pytest.raises(DataError, match="Open a folder"):
        session.run_action("captions-show", {})


@pytest.mark.parametrize(
    ("edit", "given", "before", "after"),
    [
        ("add", ["x, y"], "a, x", "a, x, y"),
        ("add in front", ["x"], "a", "x, a"),
        ("remove", ["A"], "a, b", "b"),
        ("replace", ["a", "c, d"], "a, b", "c, d, b"),
        ("pattern", [r"(\d) cats", r"\1 dogs"], "3 cats", "3 dogs"),
        ("trigger first", ["zkw", "cat"], "tree, cat", "zkw, cat, tree"),
        ("sort", [""], "z, c, b", "z, b, c"),
        ("sort", ["0"], "z, c, b", "b, c, z"),
        ("de-duplicate", [], "a, b, A", "a, b"),
        ("underscores", [], "long_hair, ^_^", "long hair, ^_^"),
        ("escape", [], "saber (fate)", r"saber \(fate\)"),
        ("unescape", [], r"saber \(fate\)", "saber (fate)"),
    ],
)
def test_every_bulk_edit_does_what_its_name_says(edit: str, given: list[str], before: str, after: str) -> None:
    assert make_edit(edit, given)(before) == after


def test_an_edit_with_an_empty_text_box_is_an_error() -> None:
    for name, kind in BULK_EDITS.items():
        if kind.inputs and name != "sort":
            with pytest.raises(DataError, match="Enter"):
                make_edit(name, [""])
    with pytest.raises(DataError, match="not a whole number"):
        make_edit("sort", ["x"])


def test_advice_names_competing_tags_and_contradictions(tmp_path: Path) -> None:
    captions = {f"{n}": f"zkw, green scarf, place {n}, thing {n}, colour {n}" for n in range(4)}
    session = opened(tmp_path, {**captions, "9": "zkw, green scarf, day, night, x"})
    answer = session.run_action("captions-advice", {"trigger": "zkw"})
    assert [one["tag"] for one in answer["prune"]] == ["green scarf"]
    (group,) = answer["advice"]
    assert group["title"] == "1 caption: 'day' and 'night' contradict each other"
    assert (group["captions"], group["numbers"]) == ([{"name": "9.png", "detail": ""}], [4])


def test_equal_advice_is_grouped_with_all_its_captions(tmp_path: Path) -> None:
    many = ", ".join(f"tag {n}" for n in range(30))
    session = opened(tmp_path, {f"{n:03}": f"{many}, extra {n}" for n in range(70)})
    (group,) = session.run_action("captions-advice", {"trigger": "zkw"})["advice"]
    assert group["title"] == "70 captions: more than 20 tags" and group["numbers"] == list(range(70))
    assert group["captions"][0] == {"name": "000.png", "detail": "31 tags"} and len(group["captions"]) == 60


@pytest.fixture(scope="module")
def words() -> TokenAnalysis:
    return TokenAnalysis(lambda: load_checkpoint_tokenizer(EMBEDDED_CHECKPOINT))


def test_token_counts_exclude_begin_and_end_token(words: TokenAnalysis) -> None:
    captions = ["", "a cat", "zkw, red hair, solo"]
    plain = load_checkpoint_tokenizer(EMBEDDED_CHECKPOINT)
    assert words.count(captions) == [len(plain(text)["input_ids"]) - 2 for text in captions]


def test_triggers_that_share_a_token_get_a_warning(words: TokenAnalysis) -> None:
    assert words.tokenize("jinxdef")[0] == words.tokenize("jinxarcane")[0] == "jin"
    (warning,) = words.shared_tokens(["jinxdef", "jinxarcane", "zkw"])
    assert "jinxdef and jinxarcane share the token 'jin'" in warning
    assert words.shared_tokens(["jinxdef", "jinxdef"]) == []


def test_rare_words_are_single_tokens_that_the_dataset_does_not_use(words: TokenAnalysis) -> None:
    rare = words.rare_words(())
    assert all(words.count([word]) == [1] and 3 <= len(word) <= 4 for word in rare)
    assert not {"cat", "girl", "red", "blue"} & set(rare)
    assert rare[0] not in words.rare_words({rare[0]})


def test_rude_words_are_not_suggested(words: TokenAnalysis) -> None:
    assert all(is_blocked(word) for word in ("fart", "Farts", "poop", "crap"))
    assert not any(is_blocked(word) for word in ("cat", "zkw", "ohwx", "sks", "girl", "glas", "", "s"))
    all_of_them = words.rare_words((), 10**6)
    assert "ohwx" in all_of_them and not any(map(is_blocked, all_of_them))
    known = {token.removesuffix("</w>") for token in words.tokenizer.get_vocab()}
    assert {"fart", "crap"} <= known, "they are tokens, and would be offered"


def test_the_list_of_rude_words_contains_hashes_only() -> None:
    source = Path(rude_words.__file__).read_text(encoding="utf-8")
    codes = source.partition("_TEXT = ")[2].split('"""')[1].split()
    assert len(codes) == len(set(codes)) > 100
    assert all(re.fullmatch(r"[0-9a-f]{8}", code) for code in codes)


def test_pages_do_not_wait_for_the_tokenizer() -> None:
    loaded = threading.Event()

    def load() -> Any:
        loaded.wait(60)
        return load_checkpoint_tokenizer(EMBEDDED_CHECKPOINT)

    slow = TokenAnalysis(load)
    assert slow.count_if_loaded(["a cat"]) is None
    loaded.set()
    assert slow.count(["a cat"]) == slow.count_if_loaded(["a cat"]) == [2]


def test_caption_lengths_are_grouped_by_chunks(tmp_path: Path) -> None:
    session = opened(tmp_path, {"a": "", "b": ", ".join(["cat"] * 38), "c": ", ".join(["cat"] * 200)})
    assert [one["captions"] for one in session.run_action("captions-words", {})["lengths"]] == [2, 0, 0, 1]
