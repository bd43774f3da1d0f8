"""The desk: what every page sees, before, during and after a run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from lib_lora_train.core.errors import DataError, HostError
from lib_lora_train.hosts.host import Card
from lib_lora_train.ui.dataset import show_found
from lib_lora_train.ui.training import show_checked
from lib_lora_train.web.form import concept_tables, fill_form, read_form
from lib_lora_train.web.gallery import PICTURES_PER_PAGE
from tests.stand_ins.ui import open_small_desk, write_pictures


def test_a_look_gives_the_plan_and_later_checks_keep_it(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path, pictures=4)
    form = desk.demo_form()
    assert desk.check(form).plan is None
    first = desk.look(form).plan
    assert first is not None
    assert len(first.dataset.items) == 4
    more = desk.check({**form, "epochs": 20}).plan
    assert more is not None
    assert more.total_steps == 2 * first.total_steps


def test_the_plan_says_what_it_needs_in_both_panels(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path)
    checked = desk.look(desk.demo_form())
    found, beside = show_found(desk.looked, checked), show_checked(checked)
    assert checked.needs is not None and checked.needs.memory is not None
    size = checked.needs.memory_words.removeprefix("about ")
    for shown in (found, beside):
        assert size in shown and "not known yet" in shown
    assert "an estimate" in found


def test_a_card_that_is_too_small_is_told_with_a_fix(tmp_path: Path) -> None:
    desk, runner = open_small_desk(tmp_path)
    form = desk.demo_form()
    needs = desk.look(form).needs
    frugal = desk.check({**form, "gradient_checkpointing": True}).needs
    assert needs and needs.memory and frugal and frugal.memory
    card = Card("RTX", needs.memory.total - 1, needs.memory.total)
    plain = runner.host.footing
    runner.host.footing = lambda config: dataclasses.replace(plain(config), card=card)
    checked = desk.check(form)
    assert "RTX has" in checked.findings[-1].message
    assert "Set gradient checkpointing to on" in [fix.label for fix in checked.fixes]


def test_another_folder_is_another_data_set(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path)
    form = desk.demo_form()
    desk.look(form)
    second = write_pictures(tmp_path / "second", 2)
    assert desk.check({**form, "concepts": json.dumps([{"folder": str(second)}])}).plan is None


def test_other_repeats_and_words_of_the_same_folders_change_the_plan_at_once(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path)
    form = desk.demo_form()
    before = desk.look(form).plan
    cards = json.dumps([{**concept_tables(form)[0], "repeats": 8, "trigger": "other"}])
    after = desk.check({**form, "concepts": cards}).plan
    assert before is not None and after is not None
    assert after.samples_per_epoch == 8 * before.samples_per_epoch
    assert after.dataset.concepts[0].trigger == "other"


def test_a_fix_is_offered_staged_and_taken_once(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path)
    form = {**desk.demo_form(), "optimizer": "Prodigy", "learning_rate": "1e-4"}
    labels = [fix.label for fix in desk.check(form).fixes]
    number = labels.index("Set learning rate to 1")
    desk.ask("fix", {"number": number})
    changed, told = desk.take_staged(form)
    assert changed == {**form, "learning_rate": "1"}
    assert "learning rate" in told.lower()
    assert desk.take_staged(form) == (form, "")


def test_concepts_shown_unequally_are_told_and_balanced_by_a_fix(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path, pictures=20)
    few = write_pictures(tmp_path / "few", 4)
    cards = json.dumps([*concept_tables(desk.demo_form()), {"folder": str(few), "trigger": "zkv"}])
    form = {**desk.demo_form(), "concepts": cards}
    checked = desk.look(form)
    (problem,) = [p for p in checked.findings if p.where == "balance_repeats"]
    assert "20 times" in problem.message and " 4" in problem.message
    number = [fix.label for fix in checked.fixes].index("Set balance repeats to on")
    desk.ask("fix", {"number": number})
    changed, _ = desk.take_staged(form)
    after = desk.check(changed)
    assert problem not in after.findings and "equally often" in str(after.findings)


def test_a_fix_of_an_older_list_is_refused(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path)
    desk.check(desk.demo_form())
    with pytest.raises(HostError, match="newer list"):
        desk.ask("fix", {"number": 99})


def test_balanced_repeats_fill_the_cards_and_tell_the_rule(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path, pictures=40)
    few = write_pictures(tmp_path / "few", 8)
    cards = json.dumps([*concept_tables(desk.demo_form()), {"folder": str(few), "trigger": "zkv"}])
    form, told = desk.balance({**desk.demo_form(), "concepts": cards})
    concepts = read_form(form)[0].concepts
    assert [(c.trigger, c.repeats) for c in concepts] == [("zkw", 3), ("zkv", 13)]
    assert "equally often" in told


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        desk.look({**desk.demo_form(), "concepts": json.dumps([{"folder": str(tmp_path / "nowhere")}])})


def test_nothing_starts_while_something_stands_against_it(tmp_path: Path) -> None:
    desk, runner = open_small_desk(tmp_path)
    checked = desk.start({**desk.demo_form(), "rank": 0, "learning_rate": "much"})
    assert not checked.is_usable
    assert runner.started == []


def test_a_start_runs_the_form_and_keeps_it(tmp_path: Path) -> None:
    desk, runner = open_small_desk(tmp_path)
    form = {**desk.demo_form(), "epochs": 3}
    assert desk.start(form).is_usable
    assert runner.started[0].epochs == 3
    assert desk.draft() == form


def test_the_runners_refusal_stands_beside_the_button(tmp_path: Path) -> None:
    desk, runner = open_small_desk(tmp_path)
    runner.is_busy = True
    assert "already running" in desk.start(desk.demo_form()).problems[-1].message


def test_a_page_that_knows_a_part_gets_only_the_rest(tmp_path: Path) -> None:
    desk, runner = open_small_desk(tmp_path)
    runner.losses = [(step, 0.1) for step in range(1, 51)]
    runner.events = [{"kind": "EpochDone", "epoch": n, "step": n, "mean_loss": 0.1} for n in range(5)]
    status = desk.status(since=3, after=48)
    assert [step for step, _ in status["loss"]] == [49, 50]
    assert [step for step, _ in status["learning_rates"]["unet"]] == [49, 50]
    assert len(status["events"]) == 2


def test_a_long_curve_is_thinned(tmp_path: Path) -> None:
    desk, runner = open_small_desk(tmp_path)
    runner.losses = [(step, 0.1) for step in range(1, 10_001)]
    assert len(desk.status(since=0, after=0)["loss"]) <= 1000


def test_not_a_number_is_valid_json(tmp_path: Path) -> None:
    desk, runner = open_small_desk(tmp_path)
    runner.losses = [(1, math.nan), (2, math.inf)]
    status = desk.status(since=0, after=0)
    assert status["loss"] == [[1, None], [2, None]]
    json.dumps(status, allow_nan=False)


def test_pictures_come_in_pages(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path, pictures=PICTURES_PER_PAGE + 5)
    assert desk.pictures(0)["total"] == 0
    desk.look(desk.demo_form())
    first, last = desk.pictures(0), desk.pictures(99)
    assert (len(first["pictures"]), len(last["pictures"])) == (PICTURES_PER_PAGE, 5)
    assert (last["page"], last["pages"]) == (1, 2)
    assert first["pictures"][7]["caption"] == "zkw, picture 7"


def test_every_form_value_can_be_kept(tmp_path: Path) -> None:
    desk, _ = open_small_desk(tmp_path)
    assert desk.draft() == fill_form(type(desk.check(desk.draft()).config)())
    desk.keep(desk.demo_form())
    assert desk.draft() == desk.demo_form()
