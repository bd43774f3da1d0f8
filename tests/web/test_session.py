"""The session: what every page sees, before, during and after a run."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from lib_lora_train.core.errors import DataError, HostError
from lib_lora_train.core.events import Noted, to_record
from lib_lora_train.hosts.host import Gpu
from lib_lora_train.ui.dataset import render_dataset
from lib_lora_train.ui.training import render_check
from lib_lora_train.web.form import concept_tables, fill_form, read_form, with_values
from lib_lora_train.web.gallery import IMAGES_PER_PAGE
from tests.paths import PACKAGE, ROOT
from tests.stand_ins.ui import open_small_session, write_images


def test_the_page_requests_exactly_the_actions_that_exist(tmp_path: Path) -> None:
    source = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "javascript").glob("*.js")}
    text = "\n".join(source.values())
    names = set(re.findall(r"lt\.(?:request|applyChange)\(\"([\w-]+)\"", text))
    names |= set(re.findall(r"\"((?:runs|queue)-[\w-]+)\"", source["lora_train_runs"]))
    strip = source["lora_train_strip"] + (PACKAGE / "web" / "runs.py").read_text(encoding="utf-8")
    names |= set(re.findall(r"(?:act\(|\"action\": )\"([\w-]+)\"", strip))
    names |= {f"captions-{name}" for name in re.findall(r"(?<!lt\.)\brequest\(\"([\w-]+)\"", text)}
    names |= {f"checkup-{name}" for name in re.findall(r"run\(container, \"(\w+)\"", source["lora_train_checkup"])}
    names |= {f"crop-{name}" for name in re.findall(r"finish\(\"(\w+)\"", source["lora_train_crop"])}
    names |= set(re.findall(r"(?:list|use): \"([\w-]+)\"", source["lora_train_pickers"]))
    measured = re.findall(r"actions}-(\w+)`", source["lora_train_measured"])
    names |= {f"{kind}-{name}" for kind in re.findall(r"actions: \"([\w-]+)\"", text) for name in measured}
    tools = source["lora_train_tools"]
    steps = re.findall(r"`\$\{task}-(\w+)`", tools)
    names |= {f"{task}-{step}" for task in re.findall(r"\"([\w-]+)\", output, request", tools) for step in steps}
    session, _ = open_small_session(tmp_path)
    only_http = {"sweep-request", "image-losses-list", "tags-list", "form-export"}
    assert names | only_http == set(session._actions)


def test_a_scan_makes_the_plan_and_later_checks_keep_it(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path, images=4)
    form = session.demo_form()
    assert session.check(form).plan is None
    first = session.scan(form).plan
    assert first is not None
    assert len(first.dataset.items) == 4
    more = session.check({**form, "epochs": 20}).plan
    assert more is not None
    assert more.total_steps == 2 * first.total_steps


def test_both_panels_show_time_and_memory_of_the_plan(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    checked = session.scan(session.demo_form())
    in_dataset, in_train = render_dataset(session.scanned, checked), render_check(checked)
    assert checked.requirements is not None and checked.requirements.memory is not None
    size = checked.requirements.memory_summary.removeprefix("about ")
    for shown in (in_dataset, in_train):
        assert size in shown and "not known yet" in shown
    assert "Estimated memory" in in_dataset


def test_too_little_gpu_memory_is_reported_with_a_fix(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    form = session.demo_form()
    requirements = session.scan(form).requirements
    frugal = session.check({**form, "gradient_checkpointing": True}).requirements
    assert requirements and requirements.memory and frugal and frugal.memory
    gpu = Gpu("RTX", requirements.memory.total - 1, requirements.memory.total)
    plain = runner.host.run_target
    runner.host.run_target = lambda config: dataclasses.replace(plain(config), gpu=gpu)
    checked = session.check(form)
    assert "RTX has" in checked.plan_problems[-1].message
    assert "Set gradient checkpointing to on" in [fix.label for fix in checked.fixes]


def test_another_folder_is_another_dataset(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = session.demo_form()
    session.scan(form)
    second = write_images(tmp_path / "second", 2)
    assert session.check({**form, "concepts": json.dumps([{"folder": str(second)}])}).plan is None


def test_changed_repeats_and_words_change_the_plan_without_a_scan(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = session.demo_form()
    before = session.scan(form).plan
    cards = json.dumps([{**concept_tables(form)[0], "repeats": 8, "trigger": "other"}])
    after = session.check({**form, "concepts": cards}).plan
    assert before is not None and after is not None
    assert after.samples_per_epoch == 8 * before.samples_per_epoch
    assert after.dataset.concepts[0].trigger == "other"


def test_a_fix_is_staged_and_applied_once(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = {**session.demo_form(), "optimizer": "Prodigy", "learning_rate": "1e-4"}
    labels = [fix.label for fix in session.check(form).fixes]
    number = labels.index("Set learning rate to 1")
    session.run_action("fix", {"number": number})
    changed, message = session.changes.pop(form)
    assert changed == {**form, "learning_rate": "1"}
    assert "learning rate" in message.lower()
    assert session.changes.pop(form) == (form, "")


def test_unequally_shown_concepts_are_reported_and_balanced_by_a_fix(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path, images=20)
    few = write_images(tmp_path / "few", 4)
    cards = json.dumps([*concept_tables(session.demo_form()), {"folder": str(few), "trigger": "zkv"}])
    form = {**session.demo_form(), "concepts": cards}
    checked = session.scan(form)
    (problem,) = [p for p in checked.plan_problems if p.where == "balance_repeats"]
    assert "20 samples" in problem.message and " 4" in problem.message
    number = [fix.label for fix in checked.fixes].index("Set balance repeats to on")
    session.run_action("fix", {"number": number})
    changed, _ = session.changes.pop(form)
    after = session.check(changed)
    assert problem not in after.plan_problems and "equally often" in str(after.plan_problems)


def test_an_outdated_fix_is_refused(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    session.check(session.demo_form())
    with pytest.raises(HostError, match="updated list"):
        session.run_action("fix", {"number": 99})


def test_balanced_repeats_are_filled_in_and_explained(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path, images=40)
    few = write_images(tmp_path / "few", 8)
    cards = json.dumps([*concept_tables(session.demo_form()), {"folder": str(few), "trigger": "zkv"}])
    form, message = session.balance({**session.demo_form(), "concepts": cards})
    concepts = read_form(form)[0].concepts
    assert [(c.trigger, c.repeats) for c in concepts] == [("zkw", 3), ("zkv", 13)]
    assert "equally often" in message


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        session.scan({**session.demo_form(), "concepts": json.dumps([{"folder": str(tmp_path / "nowhere")}])})


def test_nothing_starts_while_there_are_errors(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    checked = session.start({**session.demo_form(), "rank": 0, "learning_rate": "much"})
    assert not checked.can_start
    assert runner.started == []


def test_start_runs_the_form_and_saves_it(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    form = {**session.demo_form(), "epochs": 3}
    assert session.start(form).can_start
    assert runner.started[0].epochs == 3
    assert session.draft() == form


def test_an_error_of_the_runner_is_shown_as_a_problem(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.is_busy = True
    assert "already running" in session.start(session.demo_form()).problems[-1].message


def test_the_status_contains_only_what_is_new(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.losses = [(step, 0.1) for step in range(1, 51)]
    runner.events = [{"kind": "EpochDone", "epoch": n, "step": n, "mean_loss": 0.1} for n in range(5)]
    status = session.status(since=3, after=48)
    assert [step for step, _ in status["loss"]] == [49, 50]
    assert [step for step, _ in status["learning_rates"]["unet"]] == [49, 50]
    assert len(status["events"]) == 2


def test_notes_have_their_text_as_the_terminal_prints_it(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    notes = (("a.png", "cannot be decoded."), ("rank", "The file has none."), ("", "The model has changed."))
    runner.events = [to_record(Noted("warning", where, message)) for where, message in notes]
    texts = [event["text"] for event in session.status(since=0, after=0)["events"]]
    assert texts == ["a.png cannot be decoded.", "rank: The file has none.", "The model has changed."]


def test_a_long_curve_is_thinned(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.losses = [(step, 0.1) for step in range(1, 10_001)]
    assert len(session.status(since=0, after=0)["loss"]) <= 1000


def test_nan_becomes_valid_json(tmp_path: Path) -> None:
    session, runner = open_small_session(tmp_path)
    runner.losses = [(1, math.nan), (2, math.inf)]
    status = session.status(since=0, after=0)
    assert status["loss"] == [[1, None], [2, None]]
    json.dumps(status, allow_nan=False)


def test_images_are_paged(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path, images=IMAGES_PER_PAGE + 5)
    assert session.images(0)["total"] == 0
    session.scan(session.demo_form())
    first, last = session.images(0), session.images(99)
    assert (len(first["images"]), len(last["images"])) == (IMAGES_PER_PAGE, 5)
    assert (last["page"], last["pages"]) == (1, 2)
    assert first["images"][7]["caption"] == "zkw, image 7"


def test_every_value_of_the_form_can_be_saved(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    assert session.draft().keys() == fill_form(type(session.check(session.draft()).config)()).keys()
    session.save_draft(session.demo_form())
    assert session.draft() == session.demo_form()


@pytest.mark.parametrize("field", ["checkpoint", "vae", "continue_from", "output_dir"])
def test_the_form_is_planned_whatever_is_typed_as_a_path(field: str, tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = {**session.demo_form(), field: "~nosuchuser/x.safetensors"}
    session.save_draft(form)
    assert session.scan(form).plan is not None


@pytest.mark.parametrize("name", ["missing.safetensors", "image.png"])
def test_a_file_that_is_no_checkpoint_is_never_ready_to_start_nor_queued(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, runner = open_small_session(tmp_path)
    monkeypatch.setattr(runner, "enqueue", lambda config: pytest.fail("it was queued"), raising=False)
    monkeypatch.setattr(runner, "start", lambda config: pytest.fail("it was started"))
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 100)
    form = {**session.demo_form(), "checkpoint": str(tmp_path / name)}
    checked = session.check(form)
    assert [problem.where for problem in checked.problems if problem.level == "error"] == ["checkpoint"]
    assert "Ready to start" not in render_check(checked)
    assert not session.start(form).can_start and not session.enqueue(form).can_start


def test_a_new_form_has_the_own_resolution_of_the_model_in_use(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = session.draft()
    assert [form[name] for name in ("resolution", "min_bucket", "max_bucket")] == [128, 64, 256]


def test_the_page_names_the_model_and_offers_its_own_resolution(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    sizes = {"resolution": 512, "min_bucket": 256, "max_bucket": 1024, "bucket_no_upscale": True}
    form = {**session.demo_form(), **sizes}
    checked = session.scan(form)
    assert "tiny-sd: SD1, predicts noise (epsilon), 128 px" in render_check(checked)
    labels = [fix.label for fix in checked.fixes if fix.problem.where == "resolution"]
    assert any("resolution to 128" in label for label in labels)


def test_the_error_of_a_scan_stays_until_the_folder_is_scanned_again(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    folder = tmp_path / "later"
    form = {**session.demo_form(), "concepts": json.dumps([{"folder": str(folder), "trigger": "zkw"}])}
    with pytest.raises(DataError) as error:
        session.scan(form)
    shown = "\n".join(problem.message for problem in session.check(form).scan_errors)
    assert shown == str(error.value), "the page checks the form again a second later"
    assert session.check(session.demo_form()).scan_errors == (), "it is about other folders"
    write_images(folder, 2)
    session.scan(form)
    assert session.check(form).scan_errors == ()


def test_a_concepts_folder_named_by_a_date_has_a_button_that_sets_its_repeats(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    folder = write_images(tmp_path / "20240131_holiday", 2)
    form = {**session.demo_form(), "concepts": json.dumps([{"folder": str(folder), "trigger": "zkw"}])}
    with pytest.raises(DataError, match="probably a date"):
        session.scan(form)
    (fix,) = [fix for fix in session.check(form).fixes if fix.problem in session.check(form).scan_errors]
    assert fix.values == {"concepts[1].repeats": 1}
    checked = session.scan(with_values(form, fix.values))
    assert checked.plan and set(checked.plan.repeats) == {1}
