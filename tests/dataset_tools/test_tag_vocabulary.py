"""The user's tag list: read in the format of tag-completion extensions, and searched by prefix."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.core.errors import DataError
from lib_lora_train.dataset_tools.tag_vocabulary import Completion, KnownTag, TagList, load_tag_list

LINES = """1girl,0,5000000,"1girls,sole_female"
long_hair,0,4000000,"longhair,/lh"
long_sleeves,0,2000000,
longcat_(meme),4,300,"nekonaga"
solo,0,4500000,"solo_female,alone"
^_^,0,100000,
"""


@pytest.fixture
def tags(tmp_path: Path) -> TagList:
    (tmp_path / "tags.csv").write_text(LINES, encoding="utf-8")
    return load_tag_list(tmp_path / "tags.csv")


def names(found: list[Completion]) -> list[str]:
    return [one.tag.name for one in found]


def test_the_most_frequent_tags_come_first_up_to_the_limit(tags: TagList) -> None:
    assert (len(tags), tags.alias_count) == (6, 7)
    assert names(tags.complete_prefix("long", 9)) == ["long_hair", "long_sleeves", "longcat_(meme)"]
    assert names(tags.complete_prefix("long", 2)) == ["long_hair", "long_sleeves"]
    assert tags.complete_prefix("long", 1)[0].tag == KnownTag("long_hair", 4_000_000, "0")


@pytest.mark.parametrize("typed", ["long_h", "LONG H", " long h", "Long_H"])
def test_letter_case_and_underscores_do_not_matter(tags: TagList, typed: str) -> None:
    assert names(tags.complete_prefix(typed, 9)) == ["long_hair"]


@pytest.mark.parametrize(
    ("typed", "name", "alias"),
    [
        ("sole", "1girl", "sole_female"),
        ("alo", "solo", "alone"),
        ("/l", "long_hair", "/lh"),
        ("longha", "long_hair", "longhair"),
    ],
)
def test_an_alias_leads_to_its_tag(tags: TagList, typed: str, name: str, alias: str) -> None:
    (found,) = tags.complete_prefix(typed, 9)
    assert (found.tag.name, found.alias) == (name, alias)


def test_a_tag_that_matches_by_name_and_alias_is_returned_once_by_name(tags: TagList) -> None:
    assert tags.complete_prefix("1g", 9) == [Completion(KnownTag("1girl", 5_000_000, "0"))]
    assert tags.complete_prefix("solo", 9) == [Completion(KnownTag("solo", 4_500_000, "0"))]


@pytest.mark.parametrize("typed", ["", "  ", "zzz", "girl"])
def test_text_without_matches_gives_no_completions(tags: TagList, typed: str) -> None:
    assert tags.complete_prefix(typed, 9) == []


def test_a_plain_list_and_one_with_a_header_are_read(tmp_path: Path) -> None:
    file = tmp_path / "tags.csv"
    file.write_text("cat\n\ndog\n", encoding="utf-8")
    assert names(load_tag_list(file).complete_prefix("c", 9)) == ["cat"]
    file.write_bytes(b"\xef\xbb\xbftag,category,count,alias\ncat,0,7,\n")
    assert len(load_tag_list(file)) == 1


def test_a_file_that_is_not_a_tag_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a tag list"):
        load_tag_list(tmp_path / "missing.csv")
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as a tag list"):
        load_tag_list(tmp_path / "image.csv")
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(DataError, match="contains no tags"):
        load_tag_list(tmp_path / "empty.csv")


def test_all_of_a_hundred_thousand_tags_are_found(tmp_path: Path) -> None:
    """Compared with a linear search."""
    file = tmp_path / "many.csv"
    rows = [(f"tag_{n * 7919 % 100_003}", n * 31 % 5000) for n in range(100_000)]
    file.write_text("".join(f'{name},0,{count},"other_{name}"\n' for name, count in rows), encoding="utf-8")
    tags = load_tag_list(file)
    for typed in ("tag 12", "tag_99", "other_tag_50"):
        begin = typed.replace("_", " ").removeprefix("other ")
        fitting = [(name, count) for name, count in rows if name.replace("_", " ").startswith(begin)]
        best = sorted(count for _, count in fitting)[::-1][:8]
        found = tags.complete_prefix(typed, 8)
        assert [one.tag.count for one in found] == best
        assert {one.tag.name for one in found} <= {name for name, _ in fitting}
