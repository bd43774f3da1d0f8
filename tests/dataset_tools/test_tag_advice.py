"""Advice on implied tags: from the user's list, through several tags."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.dataset_tools.tag_advice import find_advice, implied_tags
from lib_lora_train.dataset_tools.tag_vocabulary import load_implications
from tests.dataset_tools.test_caption_files import set_of


def test_implications_of_implied_tags_count_and_cycles_end(tmp_path: Path) -> None:
    rows = "dog,animal\nanimal,creature\ncreature,dog\nzorp,zorp\n"
    (tmp_path / "tag_implications.csv").write_text(rows, encoding="utf-8")
    implications = load_implications(tmp_path / "tags.csv")
    assert implied_tags("german shepherd", implications) == ["dog", "shepherd", "animal", "creature"]
    assert implied_tags("dog", implications) == ["animal", "creature"] and implied_tags("zorp", implications) == []
    captions = set_of("german shepherd, animal, sitting, grass, sky")
    assert [remark.tags for remark in find_advice(captions, implications)] == [("german shepherd", "animal")]


@pytest.mark.parametrize("header", ["", "id,antecedent_name,consequent_name\n"])
def test_a_list_of_implications_beside_the_tag_list_is_used(tmp_path: Path, header: str) -> None:
    number = "7," if header else ""
    (tmp_path / "tag_implications.csv").write_text(f"{header}{number}Zorp_Terrier,zorp\n", encoding="utf-8")
    implications = load_implications(tmp_path / "tags.csv")
    assert implications == {"zorp terrier": {"zorp"}}
    captions = set_of("zorp_terrier, zorp, grass, sky, sun", "german shepherd, dog, grass, sky, sun")
    assert [remark.tags for remark in find_advice(captions, implications)] == [
        ("zorp terrier", "zorp"),
        ("german shepherd", "dog"),
    ]
