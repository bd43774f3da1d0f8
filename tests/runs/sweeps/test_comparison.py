"""Comparisons of runs: what differs, which epoch stands for a run, who wins, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.events import (
    EpochDone,
    Event,
    LoraWritten,
    Measured,
    Resumed,
    SampleDrawn,
    StateChanged,
)
from lib_lora_train.core.measures import LIKENESS, MEASURES, VALIDATION_LOSS, measure_info, sort_measures
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.run_results import RunResult, read_result
from lib_lora_train.runs.sweeps.best_epoch import choose_epoch
from lib_lora_train.runs.sweeps.comparison import compare
from lib_lora_train.runs.sweeps.comparison_report import comparison_text
from tests.stand_ins.ui import write_images

CONFIG = TrainConfig(concepts=(Concept("/set/zok", trigger="zok"),))


def result(run: str, losses: dict[int, float], name: str = VALIDATION_LOSS, **settings: Any) -> RunResult:
    measured = {epoch: {name: value} for epoch, value in losses.items()}
    return RunResult(
        run, "finished", CONFIG.replace(**settings), epochs=tuple(e for e in losses if e), measured=measured
    )


def test_only_settings_that_differ_are_shown_with_those_of_concepts_and_without_file_names() -> None:
    shown = compare([result("a", {1: 0.1}, rank=8, output_name="x"), result("b", {1: 0.1}, output_name="y")])
    assert shown.settings == ("rank",)
    assert [row.settings["rank"] for row in shown.rows] == [8, TrainConfig().rank]
    other = CONFIG.replace(concepts=(Concept("/set/zok", trigger="zok", repeats=5), Concept("/set/cat")))
    shown = compare([result("a", {}), RunResult("b", "finished", other)])
    assert {"concepts[1].repeats", "concepts[2].folder"} <= set(shown.settings)
    assert shown.rows[0].settings["concepts[2].folder"] is None


def test_settings_that_a_method_does_not_use_are_no_difference() -> None:
    word: dict[str, Any] = {"method": "textual_inversion", "learning_rate": 5e-3}
    runs = [result("a", {}, rank=8, **word), result("b", {}, rank=4, embedding_vectors=2, **word)]
    assert compare(runs).settings == ("embedding_vectors",)
    shown = compare([*runs, result("c", {}, rank=16), result("d", {}, rank=32)])
    assert set(shown.settings) == {"method", "embedding_vectors", "rank", "learning_rate"}
    assert [row.settings["rank"] for row in shown.rows] == [None, None, 16, 32]


def test_values_that_round_to_zero_have_no_sign() -> None:
    shown = compare([result("a", {1: -1e-9}), result("b", {1: -2e-9})])
    assert "-0.0" not in comparison_text(shown) and "+0.0" not in comparison_text(shown)


def test_differences_are_to_the_first_run_and_the_better_side_wins() -> None:
    shown = compare([result("a", {1: 0.3, 2: 0.2}), result("b", {1: 0.15, 2: 0.4}), result("c", {1: 0.5})])
    assert [(row.choice.epoch, row.best[VALIDATION_LOSS]) for row in shown.rows] == [(2, 0.2), (1, 0.15), (1, 0.5)]
    assert [round(row.differences[VALIDATION_LOSS], 6) for row in shown.rows] == [0, -0.05, 0.3]
    assert shown.winners == {VALIDATION_LOSS: 1} and shown.rows[1].last == {VALIDATION_LOSS: 0.4}
    assert compare([result("a", {1: 0.2}), result("b", {1: 0.2})]).winners == {}, "a tie has no winner"
    likeness = compare([result("a", {1: 0.2}, LIKENESS), result("b", {1: 0.9, 2: 0.8}, LIKENESS)])
    assert likeness.winners == {LIKENESS: 1} and likeness.rows[1].choice.epoch == 1


def test_a_measure_nobody_declared_is_shown_by_its_name_and_has_no_winner() -> None:
    shown = compare([result("a", {1: 0.2}, "shape_drift"), result("b", {1: 0.3}, "shape_drift")])
    assert shown.measures == ("shape_drift",) and shown.winners == {}
    assert (measure_info("shape_drift").title, measure_info("shape_drift").better) == ("Shape drift", "")
    assert sort_measures(["z", LIKENESS, "a", VALIDATION_LOSS, "z"]) == (VALIDATION_LOSS, LIKENESS, "a", "z")


@pytest.mark.parametrize(
    ("settings", "is_named"),
    [
        ({"leave_out_images": ("1.png",)}, True),
        ({"seed": 7}, True),
        ({"rank": 2}, False),
        ({"min_snr_gamma": 5.0}, False),
    ],
)
def test_measures_that_were_not_taken_alike_are_named(settings: dict[str, Any], is_named: bool) -> None:
    shown = compare([result("a", {1: 0.2}), result("b", {1: 0.3}, **settings)])
    assert bool(shown.notes) == is_named
    if is_named:
        assert f"Validation loss was not measured alike, as the runs differ in {next(iter(settings))}" in shown.notes[0]
    assert (shown.winners == {}) == is_named, "no winner where the numbers do not mean the same"


def test_a_concepts_folder_matters_to_the_measures_but_not_its_repeats() -> None:
    def differ(**values: Any) -> tuple[str, ...]:
        other = CONFIG.replace(concepts=(Concept(**{"folder": "/set/zok", "trigger": "zok", **values}),))
        return compare([result("a", {1: 0.2}), RunResult("b", "", other)]).notes

    assert differ(folder="/other") and not differ(repeats=7)


def test_the_best_epoch_is_one_with_a_file_that_was_measured_else_the_last() -> None:
    measured = {0: {VALIDATION_LOSS: 0.0}, 1: {VALIDATION_LOSS: 0.2, LIKENESS: 0.9}, 2: {LIKENESS: 1.0}}
    assert choose_epoch(measured, [1, 2]).epoch == 1
    assert choose_epoch(measured, [2]).epoch == 2 and "likeness" in choose_epoch(measured, [2]).reason
    assert (choose_epoch({}, [1, 5, 3]).epoch, choose_epoch({}, []).epoch) == (5, 0)
    assert choose_epoch(measured, [1, 2], advised=2).epoch == 2
    assert choose_epoch(measured, [1], advised=2).epoch == 1, "the file of the recommended epoch is gone"


def test_every_declared_measure_has_a_side_and_ties_to_settings_that_exist() -> None:
    fields = {*TrainConfig.__dataclass_fields__, *Concept.__dataclass_fields__}
    for info in MEASURES.values():
        assert info.better and info.tied_to and set(info.tied_to) <= fields


def test_a_run_without_epochs_is_a_row_without_values() -> None:
    shown = compare([result("a", {1: 0.2}), RunResult("b", "failed", CONFIG, reason="The disk is full.")])
    assert shown.rows[1].best == {} and shown.rows[1].choice.epoch == 0 and shown.winners == {}


def test_not_a_number_never_wins() -> None:
    assert compare([result("a", {1: float("nan")}), result("b", {1: 0.5}), result("c", {1: 0.6})]).winners == {
        VALIDATION_LOSS: 1
    }


def test_a_result_is_what_the_log_says_without_what_a_resume_made_void(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    images = sorted(write_images(folder.samples, 3).glob("*.png"))
    write_toml_config(folder.config, CONFIG.replace(rank=3))
    lora = tmp_path / "zok-000001.safetensors"
    lora.touch()
    events: list[Event] = [
        SampleDrawn(str(images[0]), 0, "zok", 1),
        EpochDone(1, 3, 0.1),
        LoraWritten(str(lora), 1, 3),
        Measured(1, {VALIDATION_LOSS: 0.3}),
        SampleDrawn(str(images[1]), 1, "zok", 1),
        SampleDrawn(str(images[2]), 1, "zok", 1, step=2),
        EpochDone(2, 6, 0.1),
        Measured(2, {VALIDATION_LOSS: 0.1}),
        StateChanged("running"),
        Resumed(3),
        StateChanged("failed", "The disk is full."),
    ]
    folder.log.write_text("".join(log_line(log_record(event)) for event in events), encoding="utf-8")
    found = read_result(folder)
    assert (found.epochs, found.measured, found.files) == ((1,), {1: {VALIDATION_LOSS: 0.3}}, {1: lora})
    assert [sample.path for sample in found.samples] == images[:2]
    assert (found.state, found.reason, found.config.rank) == ("failed", "The disk is full.", 3)
