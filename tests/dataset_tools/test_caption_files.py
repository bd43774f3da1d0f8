"""Captions are counted, filtered and edited as planned, and every edit can be undone byte for byte."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import DataError, OutputError
from lib_lora_train.dataset.captions import split_tags
from lib_lora_train.dataset_tools import journal
from lib_lora_train.dataset_tools.caption_edits import (
    add_tags,
    chain_edits,
    escape_brackets,
    move_to_front,
    remove_duplicates,
    remove_tags,
    replace_pattern,
    replace_tag,
    sort_tags,
    underscores_to_spaces,
    unescape_brackets,
)
from lib_lora_train.dataset_tools.caption_files import (
    Caption,
    CaptionFilter,
    CaptionSet,
    count_tags,
    filter_captions,
    list_backups,
    load_captions,
    plan_edit,
    write_plan,
    write_undo,
)
from lib_lora_train.dataset_tools.tag_advice import Advice, find_advice, find_tags_to_prune, group_advice
from tests.stand_ins.work import calls_of


def folder_of(tmp_path: Path, captions: Sequence[str | bytes | None]) -> Path:
    """Images (empty files; nothing here opens them) 0.png, 1.png … with these captions."""
    folder = tmp_path / "images"
    folder.mkdir(parents=True)
    for number, caption in enumerate(captions):
        (folder / f"{number}.png").touch()
        if caption is not None:
            (folder / f"{number}.txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return folder


def set_of(*captions: str) -> CaptionSet:
    return CaptionSet(
        Path("x"),
        tuple(Caption(Path(f"x/{n}.png"), Path(f"x/{n}.txt"), text, bool(text)) for n, text in enumerate(captions)),
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- reading, counting, filtering ----------------------------------------------------------------


def test_captions_are_found_in_the_same_way_as_for_training(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a, b", None, "", "schön".encode("latin-1"), "c".encode("utf-16")])
    (folder / "10_cat").mkdir()
    (folder / "10_cat" / "x.webp").touch()
    (folder / "10_cat" / "x.caption").write_text("in a sub-folder")
    (folder / "other").mkdir()
    (folder / "other" / "y.png").touch()
    captions = load_captions(folder).captions
    assert [caption.text for caption in captions] == ["a, b", "", "", "schön", "c", "in a sub-folder"]
    assert [caption.has_file for caption in captions] == [True, False, True, True, True, True]
    assert captions[1].file == folder / "1.txt"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_captions(tmp_path / "none")


def test_tags_are_counted_once_per_caption() -> None:
    captions = set_of("a, b, a", "a", "c", "")
    assert count_tags(captions) == [("a", 2), ("b", 1), ("c", 1)]
    assert count_tags(captions, [2, 3]) == [("c", 1)]


FILTERED = set_of("red hair, smile", "blue hair, smile, hat", "Red Hair, hat", "", "a long sentence about a hat")


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (CaptionFilter(), (0, 1, 2, 3, 4)),
        (CaptionFilter(all_of=("red hair",)), (0, 2)),
        (CaptionFilter(all_of=("hat", "red hair")), (2,)),
        (CaptionFilter(any_of=("hat", "red hair")), (0, 1, 2)),
        (CaptionFilter(none_of=("smile",)), (2, 3, 4)),
        (CaptionFilter(any_of=("*hair",), none_of=("hat",)), (0,)),
        (CaptionFilter(text="HAT"), (1, 2, 4)),
        (CaptionFilter(text="3.png"), (3,)),
        (CaptionFilter(untagged=True), (3,)),
        (CaptionFilter(tokens=(1, 2)), (0, 2)),
        (CaptionFilter(text="hat", tokens=(3, 9)), (1, 4)),
        (CaptionFilter(all_of=("[hat]",)), ()),
    ],
)
def test_a_caption_passes_a_filter_if_it_meets_all_conditions(wanted: CaptionFilter, numbers: tuple[int, ...]) -> None:
    def count(texts: Sequence[str]) -> list[int]:
        return [len(text.split(",")) if "," in text else len(text.split()) for text in texts]

    assert filter_captions(FILTERED, wanted, count) == numbers


def test_a_filter_by_tokens_needs_a_counter() -> None:
    with pytest.raises(ValueError, match="counts them"):
        filter_captions(FILTERED, CaptionFilter(tokens=(0, 9)))


# --- edits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        (add_tags(["new, A"]), "a, b", "a, b, new"),
        (add_tags(["x", "y"], front=True), "a", "x, y, a"),
        (add_tags(["x"]), "", "x"),
        (add_tags(["a"]), "a,b", "a,b"),
        (remove_tags(["B", "c"]), "a, b, c, d", "a, d"),
        (remove_tags(["x"]), "a,  b", "a,  b"),
        (replace_tag("b", "x, y"), "a, b, c", "a, x, y, c"),
        (replace_tag("b", "a"), "a, b, c", "a, c"),
        (replace_tag("b", ""), "a, B", "a"),
        (replace_tag("q", "x"), "a,b", "a,b"),
        (replace_pattern(r"(\w+) hair", r"hair of \1"), "red hair, x", "hair of red, x"),
        (replace_pattern("RED", "", ignore_case=True), "red, x", ", x"),
        (sort_tags(), "c, A, b", "A, b, c"),
        (sort_tags(1), "z, c, a", "z, a, c"),
        (move_to_front(["zorp", "cat"]), "red, Cat, zorp", "zorp, Cat, red"),
        (remove_duplicates(), "a, b, A, b", "a, b"),
        (underscores_to_spaces(), "long_hair, ^_^, score_9, ab_", "long hair, ^_^, score_9, ab"),
        (escape_brackets(), r"saber (fate), \(x\)", r"saber \(fate\), \(x\)"),
        (unescape_brackets(), r"saber \(fate\)", "saber (fate)"),
        (chain_edits([underscores_to_spaces(), escape_brackets(), sort_tags()]), "bee_(x), a", r"a, bee \(x\)"),
    ],
)
def test_each_edit_changes_the_text_as_named(edit: Callable[[str], str], before: str, after: str) -> None:
    assert edit(before) == after


@pytest.mark.parametrize(("pattern", "replacement"), [("(", ""), ("a", r"\1"), ("a", r"\g<x>")])
def test_an_unusable_pattern_is_refused(pattern: str, replacement: str) -> None:
    with pytest.raises(DataError, match="cannot be used"):
        replace_pattern(pattern, replacement)


def test_a_slow_pattern_is_stopped_and_named() -> None:
    """Harmless here: the limit is far below what these matches take in all."""
    edit = replace_pattern("(a|b|c)+[de]", "", limit_seconds=0.02)
    with pytest.raises(DataError, match=r"'\(a\|b\|c\)\+\[de\]' takes longer than 0.02 seconds"):
        for _ in range(1000):
            edit("abc" * 300)


def test_other_threads_run_while_a_pattern_matches() -> None:
    edit, turns, is_over = replace_pattern("(a|b|c)+[de]", "", limit_seconds=0.3), [0], threading.Event()

    def count() -> None:
        while not is_over.wait(0.001):
            turns[0] += 1

    other = threading.Thread(target=count, daemon=True)
    other.start()
    with pytest.raises(DataError, match="takes longer"):
        edit("abc" * 10_000)
    is_over.set()
    other.join()
    assert turns[0] >= 10, "a match that blocks every other thread leaves it one turn or two"


@given(st.lists(st.sampled_from(["a", "b_c", "D", "e (f)", "^_^"]), max_size=6), st.integers(0, 4))
def test_sorting_and_spelling_edits_lose_no_tag(tags: list[str], keep: int) -> None:
    text = ", ".join(tags)
    for edit in (sort_tags(keep), move_to_front(["d", "a"])):
        assert sorted(split_tags(edit(text))) == sorted(tags)
    assert unescape_brackets()(escape_brackets()(text)) == text
    assert len(split_tags(underscores_to_spaces()(text))) == len(tags)


# --- plan, write, undo ----------------------------------------------------------------------------


def test_a_plan_counts_the_changes_before_anything_is_written(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a", "a, b", None])
    captions, before = load_captions(folder), snapshot(folder)
    plan = plan_edit(captions, add_tags(["b"]))
    assert str(plan) == "2 of 3 captions would change, 1 of them is new."
    assert [(change.number, change.before, change.after) for change in plan.changes] == [(0, "a", "a, b"), (2, "", "b")]
    assert str(plan_edit(captions, add_tags(["b"]), among=[1])) == "None of 1 caption would change."
    assert snapshot(folder) == before


def test_written_captions_can_be_undone_byte_for_byte(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a\r\n", None, b"\xef\xbb\xbfwith mark", "schön".encode("latin-1"), "x, y\n\nz"])
    before = snapshot(folder)
    first, first_backup = write_plan(plan_edit(load_captions(folder), add_tags(["new"])))
    assert first == load_captions(folder)
    assert (folder / "3.txt").read_bytes() == "schön".encode("latin-1"), "no guess is written"
    assert (folder / "4.txt").read_text(encoding="utf-8") == "x, y, z, new\n"
    between = snapshot(folder)
    _, second_backup = write_plan(plan_edit(first, remove_tags(["a", "x"])))
    assert first_backup is not None and second_backup is not None
    assert list_backups(folder) == [second_backup, first_backup]
    assert write_undo(second_backup) == 2
    assert snapshot(folder) == between
    assert write_undo(first_backup) == 4
    assert snapshot(folder) == before
    assert list_backups(folder) == []


def test_a_caption_changed_by_another_program_is_not_overwritten(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a", "b"])
    plan = plan_edit(load_captions(folder), add_tags(["c"]))
    (folder / "1.txt").write_text("changed")
    with pytest.raises(DataError, match=r"1\.txt has changed"):
        write_plan(plan)
    assert (folder / "0.txt").read_text() == "a"
    _, backup = write_plan(plan_edit(load_captions(folder), add_tags(["c"])))
    assert backup is not None
    (folder / "0.txt").write_text("changed too")
    with pytest.raises(DataError, match=r"0\.txt has changed since this edit"):
        write_undo(backup)
    assert (folder / "1.txt").read_text() == "changed, c\n"


def test_a_failed_write_reverts_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, ["a", "b", "c"])
    before, plan = snapshot(folder), plan_edit(load_captions(folder), add_tags(["x"]))
    write = atomic_write.write_bytes

    def failing(file: Path, content: bytes) -> None:
        if file.name == "2.txt":
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(atomic_write, "write_bytes", failing)
    with pytest.raises(OutputError, match="No space left"):
        write_plan(plan)
    assert snapshot(folder) == before and list_backups(folder) == []


def test_a_file_is_one_caption_unless_its_lines_are(tmp_path: Path) -> None:
    captions = load_captions(folder_of(tmp_path, ["solo\nhat\n\nsolo", "", "a, b"]))

    def after(edit: Callable[[str], str], lines: str) -> list[str]:
        found = {change.number: change.after for change in plan_edit(captions, edit, lines=lines).changes}
        return [found.get(number, caption.text) for number, caption in enumerate(captions.captions)]

    assert after(add_tags(["zok"]), "joined") == ["solo, hat, solo, zok", "zok", "a, b, zok"]
    assert after(remove_duplicates(), "joined") == ["solo, hat", "", "a, b"]
    assert after(sort_tags(), "joined") == ["hat, solo, solo", "", "a, b"]
    assert after(replace_tag("q", "r"), "joined") == [one.text for one in captions.captions], "unchanged as a whole"
    for lines in ("random", "first"):
        assert after(add_tags(["zok"]), lines) == ["solo, zok\nhat, zok\n\nsolo, zok", "zok", "a, b, zok"]


def test_two_images_can_share_one_caption_file(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a"])
    (folder / "0.jpg").touch()
    captions, backup = write_plan(plan_edit(load_captions(folder), add_tags(["b"]), among=[0]))
    assert captions == load_captions(folder)
    assert backup is not None and write_undo(backup) == 1


def test_an_edit_without_changes_writes_no_backup(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a"])
    captions = load_captions(folder)
    assert write_plan(plan_edit(captions, add_tags(["a"]))) == (captions, None)
    assert list_backups(folder) == []


def test_backups_beyond_the_limit_are_deleted_from_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_MAX_RECORDS", 2)
    captions = load_captions(folder_of(tmp_path, ["a"]))
    written = []
    for tag in "bcd":
        captions, backup = write_plan(plan_edit(captions, add_tags([tag])))
        written.append(backup)
    assert list_backups(captions.folder) == [written[2], written[1]]


def test_a_damaged_backup_changes_nothing(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ["a"])
    _, backup = write_plan(plan_edit(load_captions(folder), add_tags(["b"])))
    assert backup is not None
    backup.write_text("[{}]")
    with pytest.raises(DataError, match="cannot be read"):
        write_undo(backup)
    assert (folder / "0.txt").read_text() == "a, b\n"


# --- advice -------------------------------------------------------------------------------------


def test_tags_in_nearly_all_captions_with_the_trigger_are_found() -> None:
    zorps = [f"zorp, blue hair, {'hat, ' if n != 0 else ''}pose {n}" for n in range(10)]
    frequent = find_tags_to_prune(set_of(*zorps, "hat, tree", "tree"), "zorp")
    assert [(found.tag, found.count, found.share, found.share_elsewhere) for found in frequent] == [
        ("blue hair", 10, 1.0, 0.0),
        ("hat", 9, 0.9, 0.5),
    ]
    assert "100% of the captions" in str(frequent[0])
    assert find_tags_to_prune(set_of("zorp, a", "zorp, a"), "zorp") == []
    assert [found.tag for found in find_tags_to_prune(set_of("a", "a, b", "a"), "")] == ["a"]


def test_frequent_tags_are_found_and_their_absence_explained() -> None:
    """The guides' navel: on 60% of the images, so that its absence means a covered one."""
    captions = [f"zorp, {'navel, ' if n < 6 else ''}pose {n}" for n in range(10)]
    (found,) = find_tags_to_prune(set_of(*captions), "zorp")
    assert (found.tag, found.share) == ("navel", 0.6)
    assert "leaving it out of a prompt means something too" in str(found)


def _about(advice: list[Advice]) -> list[tuple[str, ...]]:
    return [one.tags for one in advice if one.tags]


def test_contradicting_implied_and_duplicate_tags_are_found() -> None:
    def about(caption: str) -> list[tuple[str, ...]]:
        return _about(find_advice(set_of(caption)))

    assert about("1girl, red hair, blue hair, smile, hat") == [("blue hair", "red hair")]
    assert about("1girl, red eyes, blue eyes, heterochromia, hat") == []
    assert about("1girl, long_hair, short hair, smile, hat") == [("short hair", "long hair")]
    assert about("1girl, black thighhighs, thighhighs, smile, hat") == [("black thighhighs", "thighhighs")]
    assert about("1girl, cat ears, animal ears, smile, hat") == [("cat ears", "animal ears")]
    assert about("1girl, hat, smile, hat, tree") == [("hat",)]
    assert about("1girl, hat, smile, day, tree") == []


def test_five_to_twenty_tags_are_recommended_except_for_sentences() -> None:
    few, many = "a, b", ", ".join(f"tag{n}" for n in range(21))
    found = find_advice(set_of(few, many, "a woman in a red coat walks through the rain at night", ""))
    assert [(one.number, str(one)[:8]) for one in found] == [(0, "2 tags: "), (1, "21 tags:")]


def test_advice_is_grouped_by_topic_the_most_frequent_first() -> None:
    many = [", ".join(f"tag{n}" for n in range(number)) for number in (21, 25)]
    groups = group_advice(
        find_advice(set_of("1girl, hat, smile, day, night", *many, "1girl, hat, hat, tree, day, night"))
    )
    assert [(group[0].topic.title, [one.number for one in group]) for group in groups] == [
        ("'day' and 'night' contradict each other", [0, 3]),
        ("more than 20 tags", [1, 2]),
        ("duplicate tags", [3]),
    ]
    assert [one.detail for one in groups[1]] == ["21 tags", "25 tags"]


# --- many captions ------------------------------------------------------------------------------


def test_the_work_is_linear_in_the_captions(tmp_path: Path) -> None:
    words = [f"tag {n}" for n in range(400)]

    def work_on(number: int) -> int:
        rng = random.Random(0)
        (tmp_path / str(number)).mkdir()
        folder = folder_of(tmp_path / str(number), [", ".join(rng.sample(words, 20)) for _ in range(number)])

        def use_all() -> None:
            captions = load_captions(folder)
            count_tags(captions)
            filter_captions(captions, CaptionFilter(all_of=("tag 1",), none_of=("tag 2",), text="tag"))
            assert plan_edit(captions, replace_tag("tag 3", "other")).changes
            find_advice(captions)
            find_tags_to_prune(captions, "tag 5")

        return calls_of(use_all)

    assert work_on(1000) < 2.2 * work_on(500)
