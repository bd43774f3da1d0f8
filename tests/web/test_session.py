"""The session: what every page sees, before, during and after a run."""

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
from lib_lora_train.web.gallery import IMAGES_PER_PAGE
from tests.stand_ins.ui import open_small_session, write_images


def test_a_look_gives_the_plan_and_later_checks_keep_it(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path, images=4)
    form = session.demo_form()
    assert session.check(form).plan is None
    first = session.look(form).plan
    assert first is not None
    assert len(first.dataset.items) == 4
    more = session.check({**form, "epochs": 20}).plan
    assert more is not None
    assert more.total_steps == 2 * first.total_steps


def test_the_plan_says_what_it_needs_in_both_panels(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    checked = session.look(session.demo_form())
    found, beside = show_found(session.looked, checked), show_checked(checked)
    assert checked.needs is not None and checked.needs.memory is not None
    size = checked.needs.memory_words.removeprefix("about ")
    for shown in (found, beside):
        assert size in shown and "not known yet" in shown
    assert "an estimate" in found


def test_a_card_that_is_too_small_is_told_with_a_fix(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    form = session.demo_form()
    needs = session.look(form).needs
    frugal = session.check({**form, "gradient_checkpointing": True}).needs
    assert needs and needs.memory and frugal and frugal.memory
    card = Card("RTX", needs.memory.total - 1, needs.memory.total)
    plain = runner.host.footing
    runner.host.footing = lambda config: dataclasses.replace(plain(config), card=card)
    checked = session.check(form)
    assert "RTX has" in checked.findings[-1].message
    assert "Set gradient checkpointing to on" in [fix.label for fix in checked.fixes]


def test_another_folder_is_another_dataset(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = session.demo_form()
    session.look(form)
    second = write_images(tmp_path / "second", 2)
    assert session.check({**form, "concepts": json.dumps([{"folder": str(second)}])}).plan is None


def test_other_repeats_and_words_of_the_same_folders_change_the_plan_at_once(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = session.demo_form()
    before = session.look(form).plan
    cards = json.dumps([{**concept_tables(form)[0], "repeats": 8, "trigger": "other"}])
    after = session.check({**form, "concepts": cards}).plan
    assert before is not None and after is not None
    assert after.samples_per_epoch == 8 * before.samples_per_epoch
    assert after.dataset.concepts[0].trigger == "other"


def test_a_fix_is_offered_staged_and_taken_once(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = {**session.demo_form(), "optimizer": "Prodigy", "learning_rate": "1e-4"}
    labels = [fix.label for fix in session.check(form).fixes]
    number = labels.index("Set learning rate to 1")
    session.ask("fix", {"number": number})
    changed, told = session.take_staged(form)
    assert changed == {**form, "learning_rate": "1"}
    assert "learning rate" in told.lower()
    assert session.take_staged(form) == (form, "")


def test_concepts_shown_unequally_are_told_and_balanced_by_a_fix(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path, images=20)
    few = write_images(tmp_path / "few", 4)
    cards = json.dumps([*concept_tables(session.demo_form()), {"folder": str(few), "trigger": "zkv"}])
    form = {**session.demo_form(), "concepts": cards}
    checked = session.look(form)
    (problem,) = [p for p in checked.findings if p.where == "balance_repeats"]
    assert "20 times" in problem.message and " 4" in problem.message
    number = [fix.label for fix in checked.fixes].index("Set balance repeats to on")
    session.ask("fix", {"number": number})
    changed, _ = session.take_staged(form)
    after = session.check(changed)
    assert problem not in after.findings and "equally often" in str(after.findings)


def test_a_fix_of_an_older_list_is_refused(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    session.check(session.demo_form())
    with pytest.raises(HostError, match="newer list"):
        session.ask("fix", {"number": 99})


def test_balanced_repeats_fill_the_cards_and_tell_the_rule(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path, images=40)
    few = write_images(tmp_path / "few", 8)
    cards = json.dumps([*concept_tables(session.demo_form()), {"folder": str(few), "trigger": "zkv"}])
    form, told = session.balance({**session.demo_form(), "concepts": cards})
    concepts = read_form(form)[0].concepts
    assert [(c.trigger, c.repeats) for c in concepts] == [("zkw", 3), ("zkv", 13)]
    assert "equally often" in told


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        session.look({**session.demo_form(), "concepts": json.dumps([{"folder": str(tmp_path / "nowhere")}])})


def test_nothing_starts_while_something_stands_against_it(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    checked = session.start({**session.demo_form(), "rank": 0, "learning_rate": "much"})
    assert not checked.is_usable
    assert runner.started == []


def test_a_start_runs_the_form_and_keeps_it(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    form = {**session.demo_form(), "epochs": 3}
    assert session.start(form).is_usable
    assert runner.started[0].epochs == 3
    assert session.draft() == form


def test_the_runners_refusal_stands_beside_the_button(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.is_busy = True
    assert "already running" in session.start(session.demo_form()).problems[-1].message


def test_a_page_that_knows_a_part_gets_only_the_rest(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.losses = [(step, 0.1) for step in range(1, 51)]
    runner.events = [{"kind": "EpochDone", "epoch": n, "step": n, "mean_loss": 0.1} for n in range(5)]
    status = session.status(since=3, after=48)
    assert [step for step, _ in status["loss"]] == [49, 50]
    assert [step for step, _ in status["learning_rates"]["unet"]] == [49, 50]
    assert len(status["events"]) == 2


def test_a_long_curve_is_thinned(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.losses = [(step, 0.1) for step in range(1, 10_001)]
    assert len(session.status(since=0, after=0)["loss"]) <= 1000


def test_not_a_number_is_valid_json(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.losses = [(1, math.nan), (2, math.inf)]
    status = session.status(since=0, after=0)
    assert status["loss"] == [[1, None], [2, None]]
    json.dumps(status, allow_nan=False)


def test_images_come_in_pages(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path, images=IMAGES_PER_PAGE + 5)
    assert session.images(0)["total"] == 0
    session.look(session.demo_form())
    first, last = session.images(0), session.images(99)
    assert (len(first["images"]), len(last["images"])) == (IMAGES_PER_PAGE, 5)
    assert (last["page"], last["pages"]) == (1, 2)
    assert first["images"][7]["caption"] == "zkw, image 7"


def test_every_form_value_can_be_kept(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    assert session.draft() == fill_form(type(session.check(session.draft()).config)())
    session.keep(session.demo_form())
    assert session.draft() == session.demo_form()
