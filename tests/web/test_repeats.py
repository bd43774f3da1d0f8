"""Repeats that show every concept about equally often."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.train_config import Concept
from lib_lora_train.dataset.repeats import MIN_SAMPLES_PER_CONCEPT, balanced_repeats
from lib_lora_train.dataset.scan import scan_dataset
from lib_lora_train.web.repeats import balanced_concepts
from tests.stand_ins.ui import write_images


@pytest.mark.parametrize(
    ("counts", "repeats"),
    [
        ([10], [10]),
        ([30], [3]),
        ([250], [1]),
        ([250, 50], [1, 5]),
        ([7, 20], [14, 5]),
        ([1], [100]),
        ([150, 149], [1, 1]),
    ],
)
def test_repeats_follow_the_rule_of_the_guides(counts: list[int], repeats: list[int]) -> None:
    assert balanced_repeats(counts) == repeats


@pytest.mark.parametrize("counts", [[13, 29, 57], [3, 400], [99, 101], [1, 2, 3, 4]])
def test_no_other_repeats_are_closer_to_the_target(counts: list[int]) -> None:
    wanted = max(MIN_SAMPLES_PER_CONCEPT, *counts)
    for count, repeats in zip(counts, balanced_repeats(counts), strict=True):
        nearest = min(abs(count * other - wanted) for other in range(1, 1000))
        assert abs(count * repeats - wanted) == nearest


def test_kohya_sub_folders_become_separate_concepts(tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "10_cat", 4)
    write_images(tmp_path / "set" / "2_dog", 20)
    write_images(tmp_path / "reg", 5)
    given = (Concept(str(tmp_path / "set"), trigger="zkw"), Concept(str(tmp_path / "reg"), is_regularisation=True))
    balanced = balanced_concepts(given, scan_dataset(given, ".txt"))
    assert balanced[-1] == given[-1], "regularisation images are left alone"
    assert [(Path(c.folder).name, c.repeats, c.trigger) for c in balanced[:-1]] == [
        ("2_dog", 5, "zkw"),
        ("10_cat", 25, "zkw"),
    ]
    found = scan_dataset(balanced, ".txt").concepts
    assert [c.repeats for c in found] == [5, 25, 1], "explicit repeats override the folder name"
