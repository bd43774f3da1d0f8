"""QueuedRun runs: their order, their file, and how the runner goes through them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_lora_train.config.train_config import TrainConfig, config_values
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import HostError, OutputError, TrainingError
from lib_lora_train.core.events import Event, StateChanged, StepDone
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.model_identity import ModelIdentity
from lib_lora_train.runs.queue import QueuedRun, RunQueue, new_entry
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.records.past_runs import past_runs
from lib_lora_train.runs.runner import Runner
from lib_lora_train.runs.trainer import RunOptions
from lib_lora_train.web.routes import PREFIX, install_routes, make_api
from lib_lora_train.web.session import Session
from tests.stand_ins.ui import small_config, write_images


def named(name: str) -> TrainConfig:
    return TrainConfig(output_name=name)


def names(queue: RunQueue) -> list[str]:
    return [entry.name for entry in queue.entries()]


def test_queued_runs_are_in_order_and_can_be_moved_and_removed(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path / "home" / "queue.json")
    ids = [queue.add(named(name)) for name in "abcd"]
    assert names(queue) == ["a", "b", "c", "d"]
    queue.move(ids[3], 0)
    queue.move(ids[0], 99)
    assert names(queue) == ["d", "b", "c", "a"]
    queue.remove(ids[1])
    assert names(queue) == ["d", "c", "a"]
    with pytest.raises(HostError, match="no longer in the queue"):
        queue.remove(ids[1])
    assert queue.entries()[0].config() == named("d")


def test_queue_survives_a_restart(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path / "queue.json")
    queue.add(named("a").replace(rank=7))
    queue.add(named("b"), run="20260101-b", more_epochs=3)
    again = RunQueue(tmp_path / "queue.json")
    assert again.entries() == queue.entries()
    assert again.entries()[0].config().rank == 7


@pytest.mark.parametrize("text", ["", "{}", '{"waiting": [{"id": "a"}]}', "[]"])
def test_damaged_file_is_an_empty_queue(text: str, tmp_path: Path) -> None:
    (tmp_path / "queue.json").write_text(text, encoding="utf-8")
    queue = RunQueue(tmp_path / "queue.json")
    assert queue.entries() == ()
    assert "queue.json" in queue.problem, "the user must learn why the queue is empty"
    queue.add(named("new"))
    assert (tmp_path / "queue.unread.json").read_text(encoding="utf-8") == text, "nothing is thrown away"


def test_one_unreadable_entry_is_left_out_and_named(tmp_path: Path) -> None:
    good = {"id": "1", "values": {"output_name": "good"}, "run": "", "more_epochs": 0}
    entries = [good, {"id": 2, "values": {}}, 7, {**good, "values": 1}, {**good, "id": "2", "of another version": 1}]
    (tmp_path / "queue.json").write_text(json.dumps({"waiting": entries}), encoding="utf-8")
    queue = RunQueue(tmp_path / "queue.json")
    assert [entry.id for entry in queue.entries()] == ["1", "2"]
    assert "Entry 2, 3, 4" in queue.problem


def test_a_run_is_moved_to_the_position_that_it_then_has(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path / "queue.json")
    ids = [queue.add(named(name)) for name in "abcd"]
    queue.move(ids[0], 2)
    assert names(queue) == ["b", "c", "a", "d"]
    queue.move(ids[3], 1)
    assert names(queue) == ["b", "d", "c", "a"]
    queue.move(ids[0], -2)
    assert names(queue) == ["a", "b", "d", "c"]


def test_the_reason_why_a_run_cannot_start_stays_with_it_and_is_written_once(tmp_path: Path) -> None:
    file = tmp_path / "queue.json"
    queue = RunQueue(file)
    ids = [queue.add(named(name)) for name in "abc"]
    queue.set_problem(ids[1], "The folder is away.")
    assert [entry.problem for entry in queue.entries()] == ["", "The folder is away.", ""]
    assert RunQueue(file).entries() == queue.entries()
    file.unlink()
    queue.set_problem(ids[1], "The folder is away.")
    assert not file.exists()
    with pytest.raises(HostError, match="no longer in the queue"):
        queue.set_problem("unknown", "The folder is away.")


def test_a_queue_without_a_file_is_empty_and_has_no_problem(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path / "queue.json")
    assert queue.entries() == () and queue.problem == ""
    queue.add(named("a"))
    again = RunQueue(tmp_path / "queue.json")
    assert names(again) == ["a"] and again.problem == ""


def test_every_unreadable_file_is_kept_once_under_a_name_that_was_free(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "queue.json").write_text(str(number), encoding="utf-8")
        queue = RunQueue(tmp_path / "queue.json")
        queue.add(named("a"))
        queue.add(named("b"))
        assert queue.problem == "" and names(queue) == ["a", "b"]
    kept = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*unread*")}
    assert kept == {"queue.unread.json": "0", "queue.unread-2.json": "1", "queue.unread-3.json": "2"}


def test_an_entry_is_a_new_run_of_its_own_length_unless_it_says_otherwise(tmp_path: Path) -> None:
    queue = RunQueue(tmp_path / "queue.json")
    queue.add(named("added"))
    entries = [*queue.entries(), new_entry(named("made")), QueuedRun("1", {})]
    assert [(entry.run, entry.more_epochs, entry.problem) for entry in entries] == [("", 0, "")] * 3
    assert len({entry.id for entry in entries}) == 3


def test_a_run_that_cannot_be_written_to_the_queue_is_not_in_it(tmp_path: Path) -> None:
    """A file is in the place of its folder, so that nobody, not even root, can write there."""
    queue = RunQueue(tmp_path / "deep" / "home" / "queue.json")
    queue.add(named("a"))
    (tmp_path / "deep").rename(tmp_path / "away")
    (tmp_path / "deep").touch()
    with pytest.raises(OutputError, match=r"queue\.json cannot be written"):
        queue.add(named("b"))
    assert names(queue) == ["a"]


def test_an_unreadable_file_that_cannot_be_kept_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, while an editor has it open."""
    file = tmp_path / "queue.json"
    file.write_text("by hand", encoding="utf-8")
    queue, replace = RunQueue(file), Path.replace

    def in_use(path: Path, target: Path) -> Path:
        if path == file:
            raise PermissionError(13, "Permission denied")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", in_use)
    with pytest.raises(OutputError, match=r"queue\.json cannot be written: Permission denied\."):
        queue.add(named("a"))
    assert file.read_text(encoding="utf-8") == "by hand" and names(queue) == []


@pytest.mark.parametrize(
    "values",
    [{"run": 1}, {"more_epochs": "2"}, {"problem": None}, {"model": []}, {"origin": 0}, {"id": None}, {"values": []}],
)
def test_an_entry_with_a_field_of_another_kind_cannot_be_read(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "queue.json").write_text(
        json.dumps({"waiting": [{"id": "1", "values": {}}, {"id": "2", "values": {}, **values}]}), encoding="utf-8"
    )
    queue = RunQueue(tmp_path / "queue.json")
    assert [entry.id for entry in queue.entries()] == ["1"] and "Entry 2 of" in queue.problem


# --- the runner -------------------------------------------------------------------------------------


class FakeRuns:
    """Makes the events of fake runs and records their names; each waits for `gate`."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.gate = threading.Event()
        self.ends = 0

    def __call__(
        self, config: TrainConfig, host: Any, *, folder: RunFolder, control: Control, **_: object
    ) -> Iterator[Event]:
        self.started.append(config.output_name)
        yield StateChanged("running")
        self.gate.wait(20)
        if config.output_name == "broken":
            raise RuntimeError("unexpected")
        if config.output_name == "refused":
            raise TrainingError("This run cannot be trained.")
        yield StepDone(1, 1, 0.5, {"unet": 1e-4}, 1.0, 0.1)
        yield StateChanged("stopped" if control.is_stopped else "finished")


def test_runs_are_sequential_and_a_failure_does_not_stop_the_next(tmp_path: Path) -> None:
    works = FakeRuns()
    runner = Runner(None, tmp_path, make_events=works)
    runner.start(named("first"))
    for name in ("broken", "refused", "last"):
        runner.enqueue(named(name))
    assert works.started == ["first"]
    assert [entry["name"] for entry in runner.status()["queue"]] == ["broken", "refused", "last"]
    works.gate.set()
    runner.wait(20)
    assert works.started == ["first", "broken", "refused", "last"]
    states = {row["run"].split("-", 2)[2]: row["state"] for row in past_runs(tmp_path, runner.active_run)}
    assert states == {"first": "finished", "broken": "failed", "refused": "failed", "last": "finished"}
    assert runner.status()["state"] == "finished" and runner.queued_runs() == []


def test_after_a_restart_the_queue_waits_until_started(tmp_path: Path) -> None:
    Runner(None, tmp_path, make_events=FakeRuns()).enqueue(named("a"))
    works = FakeRuns()
    works.gate.set()
    runner = Runner(None, tmp_path, make_events=works)
    assert runner.status()["state"] == "idle" and works.started == []
    runner.start_queue()
    runner.wait(20)
    assert works.started == ["a"]
    with pytest.raises(HostError, match="queue is empty"):
        runner.start_queue()


def test_stop_holds_the_queue(tmp_path: Path) -> None:
    works = FakeRuns()
    runner = Runner(None, tmp_path, make_events=works)
    runner.start(named("first"))
    runner.enqueue(named("second"))
    runner.stop()
    works.gate.set()
    runner.wait(20)
    assert works.started == ["first"] and [entry["name"] for entry in runner.queued_runs()] == ["second"]


def test_queued_run_that_cannot_start_stays_in_the_queue_with_its_reason(tmp_path: Path) -> None:
    entries = [
        {"id": "1", "values": {"rank": "many", "output_name": "odd"}, "run": "", "more_epochs": 0},
        {"id": "2", "values": {}, "run": "20260101-gone", "more_epochs": 0},
        {"id": "3", "values": {"concepts": [{"folder": str(tmp_path / "away")}]}, "run": "", "more_epochs": 0},
        {"id": "4", "values": {"output_name": "good"}, "run": "", "more_epochs": 0},
    ]
    (tmp_path / "queue.json").write_text(json.dumps({"waiting": entries}), encoding="utf-8")
    works = FakeRuns()
    works.gate.set()
    runner = Runner(None, tmp_path, make_events=works)
    runner.start_queue()
    runner.wait(20)
    assert works.started == ["good"]


def test_a_queued_run_has_the_origin_and_the_model_that_it_was_queued_with(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def make(
        config: TrainConfig, host: Any, *, folder: RunFolder, control: Control, options: RunOptions | None = None
    ) -> Iterator[Event]:
        origin = json.loads(folder.origin.read_text(encoding="utf-8")) if folder.origin.exists() else None
        seen[config.output_name] = (options, origin)
        yield StateChanged("finished")

    runner = Runner(None, tmp_path, make_events=make)
    model = ModelIdentity("base", "ab12", "cd34")
    runner.queue.add(named("of a model"), model=model.values())
    runner.enqueue_all([(named("of a sweep"), {"sweep": "s", "number": 2})])
    runner.enqueue(named("plain"))
    runner.start_queue()
    runner.wait(20)
    assert seen == {
        "of a model": (RunOptions(model=model), None),
        "of a sweep": (None, {"sweep": "s", "number": 2}),
        "plain": (None, None),
    }


def test_a_run_whose_entry_cannot_be_removed_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file may be on a full disk, or belong to somebody else: the queue then keeps what is done."""
    works = FakeRuns()
    works.gate.set()
    runner = Runner(None, tmp_path, make_events=works)
    ids = [runner.enqueue(named(name)) for name in ("first", "second")]

    def fail(entry_id: str) -> None:
        raise OutputError(f"{tmp_path / 'queue.json'} cannot be written: Permission denied.")

    monkeypatch.setattr(runner.queue, "remove", fail)
    runner.start_queue()
    runner.wait(20)
    assert works.started == ["first", "second"] and caplog.text.count("Permission denied") == 2
    assert [entry["id"] for entry in runner.queued_runs()] == ids


def test_a_run_started_while_the_next_one_is_looked_for_is_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a large dataset takes a while, and Start works meanwhile; the queue follows after that run."""
    works = FakeRuns()
    runner = Runner(None, tmp_path, make_events=works)
    find_next = runner._next_queued

    def find_slowly() -> Any:
        found = find_next()
        if works.started == ["first"]:
            works.gate = threading.Event()
            runner.start(named("by hand"))
        return found

    monkeypatch.setattr(runner, "_next_queued", find_slowly)
    runner.start(named("first"))
    runner.enqueue(named("second"))
    first = runner._thread
    assert first
    works.gate.set()
    first.join(5)
    assert not first.is_alive() and runner.active_run.endswith("-by hand")
    assert [entry["name"] for entry in runner.queued_runs()] == ["second"]
    works.gate.set()
    runner.wait(20)
    assert works.started == ["first", "by hand", "second"] and runner.queued_runs() == []


def test_the_queue_does_not_start_beside_a_run_that_was_started_while_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = FakeRuns()
    runner = Runner(None, tmp_path, make_events=works)
    runner.enqueue(named("queued"))
    find_next = runner._next_queued

    def find_slowly() -> Any:
        found = find_next()
        runner.start(named("by hand"))
        return found

    monkeypatch.setattr(runner, "_next_queued", find_slowly)
    with pytest.raises(HostError, match="already running"):
        runner.start_queue()
    assert [entry["name"] for entry in runner.queued_runs()] == ["queued"]
    runner.stop()  # so that it ends, and the queue stays
    works.gate.set()
    runner.wait(20)
    assert works.started == ["by hand"]


# --- routes -----------------------------------------------------------------------------------------


def test_queue_is_controlled_over_http(tmp_path: Path) -> None:
    works = FakeRuns()
    works.gate.set()
    runner = Runner(StandaloneHost(None, None, tmp_path / "loras"), tmp_path / "home", make_events=works)
    config = small_config(write_images(tmp_path / "set", 3))
    session = Session(runner, tmp_path / "home", demo=lambda: config)
    app = make_api()
    install_routes(app, session)
    client = TestClient(app)

    def post(path: str, values: dict[str, Any]) -> Any:
        return client.post(f"{PREFIX}/{path}", json=values)

    ids = [post("queue/add", config_values(config.replace(output_name=name))).json()["id"] for name in "abc"]
    post("queue/move", {"id": ids[2], "place": 0})
    post("queue/remove", {"id": ids[0]})
    assert [entry["name"] for entry in client.get(f"{PREFIX}/queue").json()] == ["c", "b"]
    assert post("queue/remove", {"id": ids[0]}).status_code == 409
    assert post("queue/add", {"rank": "many"}).status_code == 422
    assert post("queue/add", {"run": "nowhere"}).status_code == 422
    for name in ("resume-run", "go-on"):
        assert post(name, {"run": "nowhere"}).status_code == 422
    assert "run" in post("queue/start", {}).json()
    runner.wait(20)
    assert works.started == ["c", "b"]
    assert post("queue/start", {}).status_code == 409
