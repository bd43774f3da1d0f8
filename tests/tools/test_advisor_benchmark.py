"""The truth behind `benchmarks/advisor.py`: its concepts are found and nothing else is, and its table counts right."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_sd.scenes import draw_scene, render_scene

from benchmarks import advisor_report
from benchmarks.advisor import RATES, SAMPLE_CONTROLS, SAMPLE_SCENES, designs
from benchmarks.advisor_concepts import CHOOSING, CONCEPTS, HELD_OUT, concept_pairs, drawings
from benchmarks.advisor_report import Choice
from benchmarks.advisor_truth import CONCEPT_SCENES, CONTROL_SCENES, STRENGTHS, TruthCell, climb, damage

SIDE = 128


def _blurred(image: Image.Image) -> Image.Image:
    """Blurrier than the tiny VAE."""
    small = image.convert("RGB").resize((32, 32), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BICUBIC)


# --- concepts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", CONCEPTS)
def test_a_concept_is_found_in_its_images_and_in_blurred_ones(trigger: str) -> None:
    images = [image for image, _ in concept_pairs(CONCEPTS[trigger], 40, seed=7)]
    detector = CONCEPTS[trigger].detector
    assert detector.share(images) == 1.0
    assert detector.share([_blurred(image) for image in images]) >= 0.98


@pytest.mark.parametrize("trigger", CONCEPTS)
def test_a_concept_is_not_found_in_other_scenes_or_in_noise(trigger: str) -> None:
    rng, noise = random.Random(3), np.random.default_rng(3)
    scenes = [render_scene(draw_scene(rng), drawings()) for _ in range(40)]
    noises = [
        Image.fromarray(noise.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        for cells in (4, 8, 16, 32, 64)
        for _ in range(8)
    ]
    detector = CONCEPTS[trigger].detector
    assert detector.share([*scenes, *map(_blurred, scenes), *noises]) == 0.0


def test_captions_name_the_trigger_and_the_same_seed_draws_the_same_images() -> None:
    first, second = (concept_pairs(CHOOSING[1], 6, seed=1) for _ in range(2))
    assert all(caption.startswith("plim") for _, caption in first)
    assert [np.asarray(image).tolist() for image, _ in first] == [np.asarray(image).tolist() for image, _ in second]


# --- the design ----------------------------------------------------------------------------------


def test_the_design_is_balanced() -> None:
    runs = designs()
    assert len({run.name for run in runs}) == len(runs) == 24
    for attribute, values in (("images", 4), ("rate", 3), ("family", 4), ("regularised", 2), ("concept", 5)):
        counts = Counter(getattr(run, attribute) for run in runs)
        assert len(counts) == values and max(counts.values()) - min(counts.values()) <= 1, attribute
    assert set(Counter((run.family, run.rate) for run in runs).values()) == {24 // 4 // len(RATES)}


def test_two_concepts_are_kept_for_the_final_count() -> None:
    kept = {run.concept for run in designs() if run.is_held_out}
    assert kept == {concept.trigger for concept in HELD_OUT} and len(kept) == 2
    assert not kept & {concept.trigger for concept in CHOOSING}


def test_the_truth_is_found_with_prompts_that_no_sample_uses() -> None:
    assert not set(SAMPLE_SCENES) & set(CONCEPT_SCENES)
    assert not set(SAMPLE_CONTROLS) & set(CONTROL_SCENES)


# --- truth ---------------------------------------------------------------------------------------


def test_damage_is_0_for_the_same_scene_and_1_for_another() -> None:
    apple = Image.new("RGB", (SIDE, SIDE), "white")
    apple.paste((222, 44, 44), (32, 32, 96, 96))
    slightly = Image.blend(apple, _blurred(apple), 0.5)
    elsewhere = Image.new("RGB", (SIDE, SIDE), "white")
    elsewhere.paste((222, 44, 44), (0, 0, 64, 64))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize(apple.size)
    assert damage(apple, apple) == 0.0
    assert damage(slightly, apple) < 0.1
    assert damage(elsewhere, apple) == 1.0
    assert damage(noise, apple) == 1.0


def _cell(strength: float, shown: float, hurt: float = 0.0, leaked: float = 0.0, images: int = 10) -> TruthCell:
    flags = [tuple(number < round(share * images) for number in range(images)) for share in (shown, leaked)]
    return TruthCell(strength, strength, flags[0], flags[1], (hurt,) * images, ())


def test_truth_is_the_share_shown_less_leak_and_damage() -> None:
    assert _cell(1.0, 0.8, hurt=0.25, leaked=0.1).truth == pytest.approx(0.45)


def test_cells_that_are_certain_to_be_no_better_are_not_drawn() -> None:
    drawn: list[float] = []

    def cell_at(strength: float) -> TruthCell:
        drawn.append(strength)
        return _cell(strength, 0.0, hurt=1.0) if strength >= 1.25 else _cell(strength, float(strength >= 1.0))

    cells = climb(cell_at)
    assert [cell.strength for cell in cells] == list(STRENGTHS)
    assert sorted(drawn) == [0.8, 1.0, 1.25]  # 0.6 is as empty as 0.8, and above 1.25 all is as ruined
    assert [cell.drawn_at for cell in cells] == [0.8, 0.8, 1.0, 1.25, 1.25, 1.25]


# --- the table -----------------------------------------------------------------------------------


def _record(tops: dict[tuple[int, float], float], **more: Any) -> dict[str, Any]:
    """A run with these shares shown; cells that are left out show nothing."""
    cells = [_cell(strength, tops.get((epoch, strength), 0.0)) for epoch in (1, 2, 3, 4) for strength in STRENGTHS]
    numbers = [epoch for epoch in (1, 2, 3, 4) for _ in STRENGTHS]
    truth = [
        {"epoch": epoch, "truth": cell.truth, **dataclasses.asdict(cell)}
        for epoch, cell in zip(numbers, cells, strict=True)
    ]
    events = [{"kind": "EpochDone", "epoch": epoch, "mean_loss": 1 / epoch} for epoch in (1, 2, 3, 4)]
    return {"name": "run", "held_out": False, "events": events, "truth": {"cells": truth}, **more}


def test_epochs_within_noise_of_the_best_are_right_and_so_are_their_neighbours() -> None:
    record = _record({(2, 1.0): 1.0, (3, 1.0): 0.2})
    assert advisor_report.best_epochs(record) == [2]
    assert [advisor_report.is_epoch_right(record, Choice(epoch)) for epoch in (1, 2, 3, 4)] == [True, True, True, False]


def test_the_strength_must_lie_in_the_plateau_of_the_named_epoch() -> None:
    record = _record({(2, 0.8): 1.0, (2, 1.0): 1.0, (2, 1.25): 1.0, (2, 1.5): 0.3})
    right = [advisor_report.is_strength_right(record, Choice(2, strength)) for strength in (0.6, 0.8, 1.1, 1.25, 1.5)]
    assert right == [False, True, True, True, False]


def test_an_epoch_that_is_best_only_above_strength_1_needs_more_strength() -> None:
    record = _record({(1, 1.5): 1.0, (1, 1.0): 0.1, (2, 1.0): 1.0, (2, 1.5): 1.0})
    assert advisor_report.undertrained(record) == [1]


def test_the_truth_lost_is_that_of_the_named_cell() -> None:
    record = _record({(2, 1.0): 1.0, (3, 1.0): 0.4})
    assert advisor_report.regret(record, Choice(3)) == pytest.approx(0.6)
    assert advisor_report.regret(record, Choice(2)) == 0.0


def test_where_no_epoch_is_good_it_is_right_to_name_none() -> None:
    learnt, empty = _record({(2, 1.0): 1.0}), _record({}, name="empty")
    named = advisor_report.report([learnt, empty], advisor=lambda _: Choice(2))
    none = advisor_report.report([learnt, empty], advisor=lambda _: Choice(0))
    assert "| choosing | 2 | 50% | 100% |" in named and "| 0 of 1 |" in named
    assert "| all with a good epoch | 1 | 100% | 100% |" in named
    assert "| choosing | 2 | 50% | 50% |" in none and "| 1 of 1 |" in none
    assert "| all with a good epoch | 1 | 0% | 0% |" in none
    assert advisor_report.regret(learnt, Choice(0)) == 1.0 and advisor_report.regret(empty, Choice(0)) == 0.0
