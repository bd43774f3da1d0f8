"""Past runs: shown, reused, renamed and deleted, without touching files of others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.core.errors import HostError, LoraTrainError
from lib_lora_train.core.events import (
    EpochDone,
    LoraWritten,
    Planned,
    Resumed,
    SampleDrawn,
    SampleMatched,
    StateChanged,
)
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.images.epoch_grid import GridChoice, find_grid_task
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import Identity, RunFolder, new_run_folder, write_identity
from lib_lora_train.runs.records.past_runs import find_resume_point
from lib_lora_train.web import runs
from lib_lora_train.web.form import read_form
from lib_lora_train.web.session import Session
from tests.stand_ins.ui import FakeRunner, open_small_session, small_config, write_images


def session_with_a_run(tmp_path: Path) -> tuple[Session, FakeRunner, RunFolder]:
    """A session with one finished run of two epochs, and a file of another run beside its files."""
    session, runner = open_small_session(tmp_path)
    folder = new_run_folder(tmp_path / "home", "zok")
    write_toml_config(folder.config, small_config(tmp_path / "set").replace(rank=5))
    loras = tmp_path / "loras"
    loras.mkdir()
    events: list[Any] = [Planned(3, 0, 2, 2, 4), StateChanged("running")]
    for epoch in (1, 2):
        path = loras / f"zok-{epoch:06}.safetensors"
        path.write_bytes(b"x" * 500_000)
        path.with_suffix(".json").write_text("{}", encoding="utf-8")
        image = write_images(folder.samples / str(epoch), 1) / "000.png"
        events += [EpochDone(epoch, 2 * epoch, 0.1), LoraWritten(str(path), epoch, 2 * epoch)]
        events.append(SampleDrawn(str(image), epoch, "zkw", 1))
    (loras / "zok-000003.safetensors").write_bytes(b"another run's")
    lines = [log_line(log_record(event)) for event in (*events, StateChanged("finished"))]
    folder.log.write_text("".join(lines), encoding="utf-8")
    return session, runner, folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_list_says_how_each_run_ended(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    (one,) = session.run_action("runs-list", {})["runs"]
    assert (one["run"], one["state"], len(one["loras"]), one["epochs"]) == (folder.root.name, "finished", 2, 2)


def test_the_list_can_be_continued_with_older_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    for number in range(3):
        shutil.copytree(folder.root, folder.root.parent / f"2000010{number}-000000-older")
    newest = session.run_action("runs-list", {"count": 2})
    assert [run["run"] for run in newest["runs"]] == [folder.root.name, "20000102-000000-older"]
    assert newest["has_older"]
    everything = session.run_action("runs-list", {"count": 4})
    assert len(everything["runs"]) == 4 and not everything["has_older"]
    monkeypatch.setattr(runs, "RUNS_SHOWN", 3)
    page = session.run_action("runs-list", {"count": 0})
    assert len(page["runs"]) == page["page_size"] == 3 and page["has_older"]


def test_a_run_shows_its_settings_files_and_samples(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    shown = session.run_action("runs-show", {"run": folder.root.name})
    assert shown["settings"]["rank"] == 5 and "learning_rate" not in shown["settings"]
    assert shown["triggers"] == ["zkw"]
    assert [event["kind"] for event in shown["events"]] == ["EpochDone", "SampleDrawn"] * 2
    assert [(file["epoch"], file["missing"]) for file in shown["files"]] == [(1, False), (2, False)]
    assert session.image_tokens.load_image(shown["events"][1]["token"])[1] == "image/png"
    Path(shown["events"][1]["path"]).unlink()
    again = session.run_action("runs-show", {"run": folder.root.name})
    assert len(again["events"]) == 3, "images that are gone are not shown"


def test_a_sample_that_is_nearly_a_copy_is_shown_beside_its_training_image(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)

    def shown(kind: str) -> list[dict[str, Any]]:
        events = session.run_action("runs-show", {"run": folder.root.name})["events"]
        return [event for event in events if event["kind"] == kind]

    sample, image = Path(shown("SampleDrawn")[0]["path"]), tmp_path / "set" / "000.png"
    for is_copy in (True, False):
        log_more(folder, SampleMatched(2, str(sample), str(image), 0.97, is_copy))
    [copy] = shown("SampleMatched")
    assert session.image_tokens.path_of(copy["token"]) == sample
    assert session.image_tokens.path_of(copy["image_token"]) == image
    image.unlink()
    assert not shown("SampleMatched")


def log_more(folder: RunFolder, *events: Any) -> None:
    with folder.log.open("a", encoding="utf-8") as log:
        log.writelines(log_line(log_record(event)) for event in events)


def test_files_on_record_that_are_not_on_disk_are_missing_everywhere_and_never_usable(tmp_path: Path) -> None:
    session, runner, folder = session_with_a_run(tmp_path)
    gone = tmp_path / "loras" / "zok-000002.safetensors"
    gone.unlink()
    (one,) = session.run_action("runs-list", {})["runs"]
    assert [Path(path).stem for path in one["loras"]] == ["zok-000001"] and one["missing"] == [str(gone)]
    assert session.results()[0]["missing"] == [str(gone)]
    shown = session.run_action("runs-show", {"run": folder.root.name})
    assert [file["missing"] for file in shown["files"]] == [False, True]
    assert "zok-000002" not in session.xyz_text()
    rows = find_grid_task(tmp_path / "home", GridChoice()).rows
    assert [row.lora for row in rows] == ["", "zok-000001"]
    with pytest.raises(HostError, match="is missing"):
        session.run_action("runs-rename", {"run": folder.root.name, "path": str(gone), "name": "new"})
    runner.events = [{"kind": "LoraWritten", "path": str(path)} for path in (gone, tmp_path / "set" / "000.png")]
    assert session.status(0, 0)["missing"] == [str(gone)], "the current run says so too"


def test_a_renamed_file_is_not_missing_under_its_old_name_nor_deleted_if_another_run_takes_that(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    old = tmp_path / "loras" / "zok-000002.safetensors"
    session.run_action("runs-rename", {"run": folder.root.name, "path": str(old), "name": "kept"})
    assert session.run_action("runs-list", {})["runs"][0]["missing"] == []
    old.write_bytes(b"of another run")
    session.run_action("runs-delete", {"run": folder.root.name, "files": True})
    assert names(tmp_path / "loras") == {"zok-000002.safetensors", "zok-000003.safetensors"}


def test_a_failed_run_is_listed_with_its_reason(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    assert session.run_action("runs-list", {})["runs"][0]["reason"] == ""
    log_more(folder, StateChanged("running"), StateChanged("failed", "The folder /x does not exist."))
    (one,) = session.run_action("runs-list", {})["runs"]
    assert (one["state"], one["reason"]) == ("failed", "The folder /x does not exist.")


def test_an_extended_run_has_the_totals_and_files_of_all_its_parts(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    added = tmp_path / "loras" / "zok-000004.safetensors"
    added.write_bytes(b"x")
    log_more(folder, StateChanged("running"), Planned(3, 0, 2, 4, 8), Resumed(4), LoraWritten(str(added), 4, 8))
    again = tmp_path / "loras" / "zok-000002.safetensors"
    log_more(folder, LoraWritten(str(again), 2, 4), StateChanged("finished"))  # written a second time
    (one,) = session.run_action("runs-list", {})["runs"]
    assert (one["epochs"], one["total_steps"], one["state"]) == (4, 8, "finished")
    assert [Path(path).stem for path in one["loras"]] == ["zok-000001", "zok-000002", "zok-000004"]


@pytest.mark.parametrize(("is_planned", "epochs"), [(False, 2), (True, 4)])
def test_a_run_whose_extension_failed_can_still_be_extended_or_resumed_to_its_new_end(
    tmp_path: Path, is_planned: bool, epochs: int
) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    write_toml_config(folder.config, small_config(tmp_path / "set").replace(epochs=2))
    folder.states.mkdir()
    folder.state_path(4).write_bytes(b"")
    write_identity(folder, Identity("zok", str(tmp_path / "loras"), "1", 0.0))
    planned = [Planned(3, 0, 2, 4, 8)] if is_planned else []
    log_more(folder, StateChanged("running"), *planned, StateChanged("failed", "The checkpoint is gone."))
    (one,) = session.run_action("runs-list", {})["runs"]
    assert one["can_extend"] != is_planned
    assert find_resume_point(folder).config.epochs == epochs
    assert find_resume_point(folder, more_epochs=3).config.epochs == epochs + 3


def test_the_webuis_grid_of_a_past_run_is_shown(tmp_path: Path) -> None:
    """After a restart, when nothing is in memory, the newest run opens with it."""
    session, _, folder = session_with_a_run(tmp_path)
    assert session.run_action("runs-show", {"run": folder.root.name})["epoch_grid"] is None
    Image.new("RGB", (8, 8)).save(folder.old_epoch_grid)
    grid = session.run_action("runs-show", {"run": folder.root.name})["epoch_grid"]
    assert grid["path"] == str(folder.old_epoch_grid)
    assert session.image_tokens.load_image(grid["token"])[0] == folder.old_epoch_grid.read_bytes()


def test_the_settings_of_a_run_fill_the_form(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    session.run_action("runs-settings", {"run": folder.root.name})
    form, message = session.changes.pop(session.draft())
    assert read_form(form)[0].rank == 5
    assert folder.root.name in message


def test_exported_settings_are_those_of_the_run(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    answer = session.run_action("runs-export", {"run": folder.root.name})
    assert answer == {"name": f"{folder.root.name}.toml", "text": folder.config.read_text(encoding="utf-8")}


def test_a_file_is_renamed_with_its_card_and_still_belongs_to_the_run(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    old = tmp_path / "loras" / "zok-000002.safetensors"
    session.run_action("runs-rename", {"run": folder.root.name, "path": str(old), "name": "my zok"})
    assert {"my zok.safetensors", "my zok.json"} <= names(tmp_path / "loras")
    assert not {"zok-000002.safetensors", "zok-000002.json"} & names(tmp_path / "loras")
    files = session.run_action("runs-show", {"run": folder.root.name})["files"]
    assert [(Path(file["path"]).name, file["epoch"]) for file in files] == [
        ("zok-000001.safetensors", 1),
        ("my zok.safetensors", 2),
    ]


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a\\b", ".x", "zok-000003", "zok-000001", "con", "aux", "best.", "best "]
)
def test_an_existing_or_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    before = names(tmp_path / "loras")
    path = str(tmp_path / "loras" / "zok-000002.safetensors")
    with pytest.raises(LoraTrainError):
        session.run_action("runs-rename", {"run": folder.root.name, "path": path, "name": name})
    assert names(tmp_path / "loras") == before


def test_files_of_other_runs_cannot_be_renamed(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    path = str(tmp_path / "loras" / "zok-000003.safetensors")
    with pytest.raises(HostError, match="does not belong to the run"):
        session.run_action("runs-rename", {"run": folder.root.name, "path": path, "name": "mine"})


def test_deleting_deletes_exactly_what_its_preview_lists(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    what = session.run_action("runs-preview-delete", {"run": folder.root.name})
    assert sorted(what["files"]) == sorted(names(tmp_path / "loras") - {"zok-000003.safetensors"})
    assert 1.0 < what["megabytes"] < 1.1
    assert folder.root.is_dir(), "the preview deletes nothing"
    session.run_action("runs-delete", {"run": folder.root.name, "files": True})
    assert not folder.root.exists()
    assert names(tmp_path / "loras") == {"zok-000003.safetensors"}


def test_deleting_only_the_folder_keeps_the_lora_files(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    before = names(tmp_path / "loras")
    session.run_action("runs-delete", {"run": folder.root.name, "files": False})
    assert not folder.root.exists()
    assert names(tmp_path / "loras") == before


def test_an_active_run_cannot_be_deleted_or_renamed(tmp_path: Path) -> None:
    session, runner, folder = session_with_a_run(tmp_path)
    runner.active_run = folder.root.name
    for name in ("runs-delete", "runs-preview-delete", "runs-rename"):
        with pytest.raises(HostError, match="still training"):
            session.run_action(name, {"run": folder.root.name})
    assert folder.root.is_dir()


@pytest.mark.parametrize("run", ["", ".", "..", "../home", "nowhere", "/"])
def test_only_runs_of_this_home_can_be_asked_for(tmp_path: Path, run: str) -> None:
    session, _, _ = session_with_a_run(tmp_path)
    with pytest.raises(HostError, match="no run"):
        session.run_action("runs-delete", {"run": run, "files": True})


def test_the_status_of_ten_thousand_steps_is_small_and_what_follows_tiny(tmp_path: Path) -> None:
    """Whole curves are thinned to 1,000 points each; a page that knows them gets only what is new."""
    session, runner = open_small_session(tmp_path)
    runner.losses = [(step, 0.123456789 + step * 1e-7) for step in range(1, 10_001)]
    whole = len(json.dumps(session.status(since=0, after=0)))
    later = len(json.dumps(session.status(since=0, after=9_999)))
    assert whole < 100_000
    assert later < 1_000


def test_the_report_of_a_run_is_one_text_for_a_bug_report(tmp_path: Path) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    answer = session.run_action("runs-report", {"run": folder.root.name})
    assert answer["name"].endswith(".txt") and "rank = 5" in answer["text"] and str(tmp_path) not in answer["text"]
    with pytest.raises(HostError, match="There is no run"):
        session.run_action("runs-report", {"run": ".."})


def test_a_rename_that_fails_leaves_card_and_preview_with_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _, folder = session_with_a_run(tmp_path)
    before = names(tmp_path / "loras")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib_lora_train.web.runs.write_renamed", full)
    values = {"run": folder.root.name, "path": str(tmp_path / "loras" / "zok-000001.safetensors"), "name": "best"}
    with pytest.raises(LoraTrainError, match="No space left"):
        session.run_action("runs-rename", values)
    assert names(tmp_path / "loras") == before
