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


def act(session: Session, tmp_path: Path, name: str, **values: Any) -> dict[str, Any]:
    """What a page that shows the folder requests."""
    return session.run_action(f"captions-{name}", {"folder": str(tmp_path / "images"), **values})


def save(session: Session, tmp_path: Path, image: str, text: str) -> dict[str, Any]:
    """Save a caption as a page that has just read it."""
    seen = act(session, tmp_path, "read", image=image)["seen"]
    return act(session, tmp_path, "save", image=image, text=text, seen=seen)


def apply(session: Session, tmp_path: Path, **order: Any) -> dict[str, Any]:
    """Apply an edit as a page that has just previewed it."""
    return act(session, tmp_path, "apply", **order, seen=act(session, tmp_path, "preview", **order)["seen"])


def undo(session: Session, tmp_path: Path) -> dict[str, Any]:
    """Undo as a page that has just read the folder."""
    return act(session, tmp_path, "undo", record=act(session, tmp_path, "show")["record"])


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
    assert names(session.run_action("captions-show", {"folder": str(tmp_path / "images"), "filter": wanted})) == found


def test_an_invalid_token_limit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="whole numbers"):
        opened(tmp_path, FOUR).run_action(
            "captions-show", {"folder": str(tmp_path / "images"), "filter": {"most": "many"}}
        )


def test_tags_are_counted_in_matching_captions(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    assert session.run_action("captions-show", {"folder": str(tmp_path / "images")})["tags"][0] == ["zkw", 3]
    assert (
        dict(
            session.run_action("captions-show", {"folder": str(tmp_path / "images"), "filter": {"all_of": "solo"}})[
                "tags"
            ]
        )["zkw"]
        == 2
    )


def test_a_page_contains_only_its_images(tmp_path: Path) -> None:
    session = opened(tmp_path, {f"{n:03}": f"tag {n}" for n in range(IMAGES_PER_PAGE + 5)})
    last = session.run_action("captions-show", {"folder": str(tmp_path / "images"), "page": 99})
    assert (last["page"], last["pages"], len(last["images"])) == (1, 2, 5)


@pytest.mark.parametrize(("scope", "number"), [("all", 2), ("filtered", 1), ("selected", 1)])
def test_an_edit_changes_exactly_the_captions_that_its_preview_counts(tmp_path: Path, scope: str, number: int) -> None:
    session = opened(tmp_path, FOUR)
    order = {
        "edit": "remove",
        "texts": ["solo"],
        "scope": scope,
        "selected": ["b.png", "gone.png"],
        "filter": {"all_of": "blue_hair"},
    }
    before = texts(tmp_path)
    assert act(session, tmp_path, "preview", **order)["number"] == number
    assert texts(tmp_path) == before, "a preview writes nothing"
    apply(session, tmp_path, **order)
    after = texts(tmp_path)
    assert sum(after[name] != before[name] for name in before) == number
    assert after["b"] == "zkw, blue_hair"
    assert undo(session, tmp_path)["undo"] == 0
    assert texts(tmp_path) == before


def test_a_caption_is_saved_as_typed_and_can_be_undone(tmp_path: Path) -> None:
    session = opened(tmp_path, {**FOUR, "d": "one line\nanother"})
    assert save(session, tmp_path, "c.png", "zkw, new")["tokens"] > 0
    save(session, tmp_path, "d.png", "first\nsecond")
    assert (texts(tmp_path)["c"], texts(tmp_path)["d"]) == ("zkw, new", "first\nsecond")
    undo(session, tmp_path)
    undo(session, tmp_path)
    assert "c" not in texts(tmp_path), "the new caption file is removed again"
    assert texts(tmp_path)["d"] == "one line\nanother"


def test_undo_without_an_edit_and_browsing_without_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to undo"):
        undo(opened(tmp_path, FOUR), tmp_path)
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
    answer = session.run_action("captions-advice", {"folder": str(tmp_path / "images"), "trigger": "zkw"})
    assert [one["tag"] for one in answer["prune"]] == ["green scarf"]
    (group,) = answer["advice"]
    assert group["title"] == "1 caption: 'day' and 'night' contradict each other"
    assert (group["captions"], group["images"]) == ([{"name": "9.png", "detail": ""}], ["9.png"])


def test_equal_advice_is_grouped_with_all_its_captions(tmp_path: Path) -> None:
    many = ", ".join(f"tag {n}" for n in range(30))
    session = opened(tmp_path, {f"{n:03}": f"{many}, extra {n}" for n in range(70)})
    (group,) = session.run_action("captions-advice", {"folder": str(tmp_path / "images"), "trigger": "zkw"})["advice"]
    assert group["title"] == "70 captions: more than 20 tags" and group["images"] == [f"{n:03}.png" for n in range(70)]
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
    folder = {"folder": str(tmp_path / "images")}
    lengths = session.run_action("captions-words", folder)["lengths"]
    assert [one["captions"] for one in lengths] == [2, 0, 0, 1]
    assert [(one["from"], one["to"]) for one in lengths] == [(0, 75), (76, 150), (151, 225), (226, None)]
    assert session.run_action("captions-show", folder)["limits"] == [75, 150, 225], "the page marks them by these"


# --- two pages, and files that change ------------------------------------------------------------


def two_folders(tmp_path: Path) -> Session:
    """A session with the folder of the test, and `other`, which another page opened later."""
    session = opened(tmp_path, FOUR)
    write_images(tmp_path / "other", 4)
    session.run_action("captions-open", {"folder": str(tmp_path / "other")})
    return session


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_two_pages_each_edit_only_their_own_folder(tmp_path: Path) -> None:
    session = two_folders(tmp_path)
    before, other = contents(tmp_path / "images"), contents(tmp_path / "other")
    save(session, tmp_path, "b.png", "typed on page one")
    assert apply(session, tmp_path, edit="add", texts=["forest"])["message"] == "4 of 4 captions changed."
    assert texts(tmp_path)["b"] == "typed on page one, forest" and contents(tmp_path / "other") == other
    undo(session, tmp_path)
    undo(session, tmp_path)
    assert contents(tmp_path / "images") == before and contents(tmp_path / "other") == other


def test_an_edit_of_another_page_is_neither_overwritten_nor_undone_by_surprise(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    shown = act(session, tmp_path, "show")
    seen = {one["image"]: one["seen"] for one in shown["images"]}
    previewed = act(session, tmp_path, "preview", edit="add", texts=["forest"])["seen"]
    save(session, tmp_path, "a.png", "of page two")
    with pytest.raises(DataError, match=r"a\.png has changed since it was shown"):
        act(session, tmp_path, "save", image="a.png", text="of page one", seen=seen["a.png"])
    with pytest.raises(DataError, match="changed since the preview, so nothing was written"):
        act(session, tmp_path, "apply", edit="add", texts=["forest"], seen=previewed)
    with pytest.raises(DataError, match="edited again in the meantime"):
        act(session, tmp_path, "undo", record=shown["record"])
    assert texts(tmp_path) == {"a": "of page two", "b": "zkw, blue_hair, solo", "d": "dog, zkw"}


def test_a_deleted_or_added_neighbour_shifts_no_caption(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    shown = {one["image"]: one for one in act(session, tmp_path, "show")["images"]}
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "0.png")
    (tmp_path / "images" / "c.png").unlink()
    act(session, tmp_path, "save", image="b.png", text="of b", seen=shown["b.png"]["seen"])
    apply(session, tmp_path, edit="add", texts=["of d"], scope="selected", selected=["c.png", "d.png"])
    with pytest.raises(DataError, match=r"c\.png is no longer in"):
        act(session, tmp_path, "save", image="c.png", text="lost", seen=shown["c.png"]["seen"])
    assert texts(tmp_path) == {"a": "zkw, red hair, solo", "b": "of b", "d": "dog, zkw, of d"}


def test_a_failed_opening_leaves_no_folder_to_edit(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    before = contents(tmp_path / "images")
    missing = {"folder": str(tmp_path / "none")}
    requests: dict[str, dict[str, object]] = {
        "open": {},
        "show": {},
        "save": {"image": "a.png", "text": "x", "seen": ""},
        "apply": {"edit": "add", "texts": ["x"], "seen": ""},
        "undo": {"record": ""},
    }
    for name, values in requests.items():
        with pytest.raises(DataError, match="none"):
            session.run_action(f"captions-{name}", {**missing, **values})
    assert contents(tmp_path / "images") == before


def test_files_changed_by_another_program_are_read_again(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    (tmp_path / "images" / "c.txt").write_text("by hand", encoding="utf-8")
    assert act(session, tmp_path, "show")["images"][2]["text"] == "by hand"


def test_a_refused_save_says_what_the_file_holds_so_that_the_user_can_choose(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    first = act(session, tmp_path, "show")["images"][0]["seen"]
    (tmp_path / "images" / "a.txt").write_text("by another program", encoding="utf-8")
    with pytest.raises(DataError, match="yours was not saved"):
        act(session, tmp_path, "save", image="a.png", text="mine", seen=first)
    found = act(session, tmp_path, "read", image="a.png")
    assert found["text"] == "by another program"
    act(session, tmp_path, "save", image="a.png", text="mine", seen=found["seen"])
    assert texts(tmp_path)["a"] == "mine"
    undo(session, tmp_path)
    assert texts(tmp_path)["a"] == "by another program"


def test_one_save_after_another_needs_no_reading_in_between(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    seen = save(session, tmp_path, "a.png", "first")["seen"]
    act(session, tmp_path, "save", image="a.png", text="second", seen=seen)
    shown = act(session, tmp_path, "show", filter={"text": "second"})
    assert (shown["found"], shown["undo"]) == (1, 2) and shown["tags"] == [["second", 1]]


# --- encodings and lines -------------------------------------------------------------------------


def test_bulk_edits_leave_out_captions_whose_encoding_is_not_certain(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    (tmp_path / "images" / "b.txt").write_bytes("schön, fenêtre".encode("cp1252"))
    note = "1 caption is not UTF-8 and was left out: b.txt. Choose its encoding with Check images"
    order = {"edit": "add", "texts": ["forest"]}
    assert note in act(session, tmp_path, "preview", **order)["message"]
    before = contents(tmp_path / "images")
    assert note in apply(session, tmp_path, **order)["message"]
    after = contents(tmp_path / "images")
    assert after["b.txt"] == before["b.txt"] and after["a.txt"] == b"zkw, red hair, solo, forest\n"
    undo(session, tmp_path)
    assert contents(tmp_path / "images") == before


def test_many_captions_left_out_are_named_up_to_a_limit(tmp_path: Path) -> None:
    session = opened(tmp_path, {f"{n}": "x" for n in range(7)})
    for file in (tmp_path / "images").glob("*.txt"):
        file.write_bytes("schön".encode("cp1252"))
    message = act(session, tmp_path, "preview", edit="add", texts=["y"])["message"]
    assert "7 captions are not UTF-8 and were left out: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more." in message


def test_a_typed_caption_replaces_a_guess_and_undo_restores_its_bytes(tmp_path: Path) -> None:
    session = opened(tmp_path, FOUR)
    raw = "schön".encode("cp1252")
    (tmp_path / "images" / "b.txt").write_bytes(raw)
    assert [one["certain"] for one in act(session, tmp_path, "show")["images"]] == [True, False, True, True]
    save(session, tmp_path, "b.png", "schöner")
    assert texts(tmp_path)["b"] == "schöner"
    undo(session, tmp_path)
    assert (tmp_path / "images" / "b.txt").read_bytes() == raw


@pytest.mark.parametrize(
    ("lines", "text"), [("joined", "a, b, new"), ("random", "a, new\nb, new"), ("first", "a, new\nb, new")]
)
def test_bulk_edits_read_lines_as_training_does(tmp_path: Path, lines: str, text: str) -> None:
    session = opened(tmp_path, {"a": "a\nb"})
    form = {**session.demo_form(), "caption_lines": lines}
    session.save_draft(form)
    apply(session, tmp_path, edit="add", texts=["new"])
    assert texts(tmp_path)["a"] == text
