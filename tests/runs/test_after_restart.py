"""After a restart one click continues what was interrupted: the run, and the queue behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import Event, Planned, StateChanged
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.records.event_log import EventLog, log_record
from lib_lora_train.runs.records.folder import Identity, RunFolder, new_run_folder, write_identity
from lib_lora_train.runs.runner import Runner
from lib_lora_train.web.runs import RunSession


def left_behind(home: Path, name: str, *states: str, steps: int = 3) -> RunFolder:
    """A run as it lies on the disk after these states; `steps` 0: before its first training state."""
    folder = new_run_folder(home, name)
    write_toml_config(folder.config, TrainConfig(output_name=name))
    log = EventLog(folder.log)
    log.append(log_record(Planned(3, 0, 3, 3, 9)))
    for state in states:
        log.append(log_record(StateChanged(state)))  # type: ignore[arg-type]
    if steps:
        write_identity(folder, Identity(name, str(home), "session", 0.0))
        folder.states.mkdir()
        folder.state_path(steps).write_bytes(b"state")
    return folder


class Restarted:
    """The page's actions in a process that was just started; the runs that it starts are in `started`."""

    def __init__(self, home: Path) -> None:
        self.started: list[str] = []
        self.runner = Runner(None, home, make_events=self._events)
        self.runs = RunSession(self.runner, home, None, lambda config, run: None)  # type: ignore[arg-type]

    def _events(self, config: TrainConfig, _host: Any, *, folder: RunFolder, **_: Any) -> Iterator[Event]:
        self.started.append(config.output_name)
        yield StateChanged("running")
        yield StateChanged("finished")

    def go_on(self) -> None:
        self.runs.actions()["interrupted-resume"]({})
        self.runner.wait(30)


@pytest.mark.parametrize("states", [("running",), ("running", "paused"), ("waiting",), ("stopping",)])
def test_run_and_queue_go_on_with_one_click(tmp_path: Path, states: tuple[str, ...]) -> None:
    left_behind(tmp_path, "zorp", *states)
    Runner(None, tmp_path).enqueue(TrainConfig(output_name="next"))
    page = Restarted(tmp_path)
    sentence = page.runs.interrupted()
    assert "-zorp was interrupted after step 3 of 9. 1 queued run has not started." in sentence
    page.go_on()
    assert page.started == ["zorp", "next"]


def test_run_without_a_state_begins_again_and_a_queue_alone_is_started(tmp_path: Path) -> None:
    folder = left_behind(tmp_path, "zorp", "running", steps=0)
    page = Restarted(tmp_path)
    assert page.runs.interrupted() == f"{folder.root.name} was interrupted before its first saved step."
    page.go_on()
    assert page.started == ["zorp"]
    for name in ("a", "b"):
        page.runner.enqueue(TrainConfig(output_name=name))
    again = Restarted(tmp_path)
    assert again.runs.interrupted() == "2 queued runs have not started."
    again.go_on()
    assert again.started == ["a", "b"]


@pytest.mark.parametrize("ending", ["finished", "stopped", "failed"])
def test_nothing_is_offered_for_a_run_with_an_ending(tmp_path: Path, ending: str) -> None:
    old = left_behind(tmp_path, "old", "running")
    left_behind(tmp_path, "zorp", "running", ending)
    os.utime(old.log, (1, 1))  # crashed long ago; another run was trained since
    page = Restarted(tmp_path)
    assert page.runs.interrupted() == ""
    with pytest.raises(HostError, match="queue is empty"):
        page.go_on()


def test_the_run_that_was_active_last_goes_on_even_if_it_is_an_older_one(tmp_path: Path) -> None:
    old = left_behind(tmp_path, "old", "running")
    newer = left_behind(tmp_path, "newer", "running")
    os.utime(newer.log, (1, 1))
    page = Restarted(tmp_path)
    assert page.runs.interrupted().startswith(old.root.name)


def test_queue_goes_on_if_the_run_cannot(tmp_path: Path) -> None:
    folder = left_behind(tmp_path, "zorp", "running")
    Runner(None, tmp_path).enqueue(TrainConfig(output_name="next"))
    folder.config.write_text("[", encoding="utf-8")
    page = Restarted(tmp_path)
    page.go_on()
    assert page.started == ["next"]


def test_offer_can_be_dismissed_and_follows_the_queue(tmp_path: Path) -> None:
    left_behind(tmp_path, "zorp", "running")
    entry = Runner(None, tmp_path).enqueue(TrainConfig(output_name="next", concepts=(Concept(folder="x"),)))
    page = Restarted(tmp_path)
    assert "1 queued run" in page.runs.interrupted()
    page.runner.queue.remove(entry)
    assert "queued" not in page.runs.interrupted()
    page.runs.actions()["interrupted-dismiss"]({})
    assert page.runs.interrupted() == ""
