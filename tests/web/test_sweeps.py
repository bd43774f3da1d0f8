"""Sweeps and comparisons as the page and the API request them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from lib_lora_train.config.train_config import TrainConfig, config_values
from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ConfigError, LoraTrainError
from lib_lora_train.core.events import EpochDone, Event, Measured, SampleDrawn, StateChanged
from lib_lora_train.core.measures import VALIDATION_LOSS
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.records.folder import RunFolder
from lib_lora_train.runs.runner import Runner
from lib_lora_train.web.form import read_form
from lib_lora_train.web.routes import PREFIX, install_routes, make_api
from lib_lora_train.web.session import Session
from tests.stand_ins.ui import small_config, write_images


class FakeRuns:
    """Runs of two epochs whose validation loss is lower at a higher rank; each waits for `gate`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def __call__(
        self, config: TrainConfig, host: Any, *, folder: RunFolder, control: Control, **_: object
    ) -> Iterator[Event]:
        write_toml_config(folder.config, config)
        yield StateChanged("running")
        self.gate.wait(20)
        images = sorted(write_images(folder.samples / "x", 3).glob("*.png"))
        yield SampleDrawn(str(images[0]), 0, "zkw", 1)
        for epoch in (1, 2):
            yield EpochDone(epoch, epoch, 0.1)
            yield Measured(epoch, {VALIDATION_LOSS: epoch / config.rank})
            yield SampleDrawn(str(images[epoch]), epoch, "zkw", 1)
        yield StateChanged("finished")


@pytest.fixture
def works() -> FakeRuns:
    return FakeRuns()


@pytest.fixture
def session(tmp_path: Path, works: FakeRuns) -> Session:
    config = small_config(write_images(tmp_path / "set", 3))
    runner = Runner(StandaloneHost(None, None, tmp_path / "Lora", "cpu"), tmp_path / "home", make_events=works)
    session = Session(runner, tmp_path / "home", demo=lambda: config)
    session.save_draft(session.demo_form())
    return session


def demo_config(session: Session) -> TrainConfig:
    return read_form(session.demo_form())[0]


def test_a_sweep_of_the_form_is_previewed_queued_and_compared(session: Session) -> None:
    axes = [["rank", "2, 4"], ["learning_rate", "1e-4"]]
    preview = session.run_action("sweep-preview", {"axes": axes})
    assert (preview["count"], preview["names"][0]) == (2, "small-rank2-learning_rate1e-4")
    assert session.queued_runs() == [], "a preview queues nothing"
    answer = session.run_action("sweep-start", {"axes": axes})
    assert answer["message"].startswith("2 runs queued, ")
    session.runner.wait(20)
    shown = session.run_action("compare", {"sweep": answer["sweep"]})
    assert (shown["states"], shown["open"], shown["waiting"]) == (["finished", "finished"], 0, [])
    assert shown["settings"] == ["rank"] and [row["texts"]["rank"] for row in shown["rows"]] == ["2", "4"]
    assert [row["epoch"] for row in shown["rows"]] == [1, 1] and shown["winners"] == {VALIDATION_LOSS: 1}
    tokens = [shown["without"][0]["token"], *(row["samples"][0]["token"] for row in shown["rows"])]
    assert len(set(tokens)) == 3 and all(session.image_tokens.load_image(token)[1] == "image/png" for token in tokens)
    (listed,) = session.run_action("sweep-list", {})["sweeps"]
    assert listed["sweep"] == answer["sweep"] and "2 of 2 runs finished" in listed["text"]


def test_a_past_run_is_repeated_without_a_tag_and_an_image_and_compared_with_itself(
    session: Session, tmp_path: Path
) -> None:
    files = {path: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    run = session.start_values(config_values(demo_config(session)))
    session.runner.wait(20)
    answer = session.run_action(
        "sweep-start", {"run": run, "axes": [["leave_out_tags", "image 0"], ["leave_out_images", "001.png"]]}
    )
    session.runner.wait(20)
    shown = session.run_action("compare", {"sweep": answer["sweep"]})
    assert shown["rows"][0]["run"] == run and len(shown["rows"]) == 2
    assert [row["texts"] for row in shown["rows"]] == [
        {"leave_out_tags": "empty", "leave_out_images": "empty"},
        {"leave_out_tags": "image 0", "leave_out_images": "001.png"},
    ]
    assert any(note.startswith("Validation loss") for note in shown["notes"])
    assert {path: path.read_bytes() for path in (tmp_path / "set").iterdir()} == files


def test_any_runs_can_be_compared(session: Session) -> None:
    runs = []
    for rank in (2, 8):
        runs.append(session.start_values(config_values(demo_config(session).replace(rank=rank))))
        session.runner.wait(20)
    shown = session.run_action("compare", {"runs": runs})
    assert shown["settings"] == ["rank"] and shown["rows"][1]["differences"][VALIDATION_LOSS] == 1 / 8 - 1 / 2
    wrong_requests: tuple[dict[str, Any], ...] = ({"runs": [runs[0], "../x"]}, {"sweep": "gone"}, {"runs": []})
    for wrong in wrong_requests:
        with pytest.raises(LoraTrainError):
            session.run_action("compare", wrong)


def test_the_settings_that_can_be_varied_are_listed_with_their_values(session: Session) -> None:
    listed = {one["place"]: one for one in session.run_action("sweep-settings", {})["settings"]}
    assert listed["rank"]["now"] == "16" and listed["concepts[1].trigger"]["now"] == "zkw"
    assert listed["shuffle_captions"]["example"] == "on, off"
    assert not {"output_name", "output_dir", "sample_prompts"} & listed.keys()


def test_nothing_is_queued_if_one_of_the_runs_cannot_be_trained(session: Session, tmp_path: Path) -> None:
    for axes in ([["rank", "2 0"]], [["leave_out_images", "|*.png"]], [["checkpoint", "|/nowhere.ckpt"]]):
        with pytest.raises(LoraTrainError):
            session.run_action("sweep-start", {"axes": axes})
    assert session.queued_runs() == [] and session.run_action("sweep-list", {})["sweeps"] == []
    with pytest.raises(ConfigError, match="Did you mean 'rank'"):
        session.run_action("sweep-preview", {"axes": [["rnk", "1 2"]]})


def test_a_sweep_waits_behind_the_active_run_and_its_parts_can_be_queued_again(
    session: Session, works: FakeRuns
) -> None:
    works.gate.clear()
    first = session.start_values(config_values(demo_config(session)))
    sweep = session.run_action("sweep-start", {"axes": [["rank", "2 4"]]})["sweep"]
    shown = session.run_action("compare", {"sweep": sweep})
    assert session.runner.active_run == first and "rows" not in shown
    assert [(one["label"], one["state"]) for one in shown["waiting"]] == [("rank 2", "queued"), ("rank 4", "queued")]
    session.run_action("queue-remove", {"id": session.queued_runs()[0]["id"]})
    assert session.run_action("sweep-list", {})["sweeps"][0]["open"] == 1
    assert session.run_action("sweep-continue", {"sweep": sweep}) == {"queued": 1}
    works.gate.set()
    session.runner.wait(20)
    assert session.run_action("compare", {"sweep": sweep})["states"] == ["finished", "finished"]


def test_sweeps_and_comparisons_over_http(session: Session) -> None:
    app = make_api()
    install_routes(app, session)
    client = TestClient(app)
    settings = config_values(demo_config(session))
    asked = {"settings": settings, "vary": {"rank": [2, 4], "leave_out_tags": [[], ["image 0", "image 1"]]}}
    answer = client.post(f"{PREFIX}/sweep", json=asked).json()
    session.runner.wait(20)
    shown = client.get(f"{PREFIX}/comparison", params={"sweep": answer["sweep"]}).json()
    assert [row["texts"]["leave_out_tags"] for row in shown["rows"]] == ["empty", "image 0, image 1"] * 2
    runs = [row["run"] for row in shown["rows"]][:2]
    assert client.get(f"{PREFIX}/comparison", params={"runs": ",".join(runs)}).json()["settings"] == ["leave_out_tags"]
    assert client.post(f"{PREFIX}/sweep", json={"run": runs[0], "vary": {"rank": "32"}}).status_code == 200
    session.runner.wait(20)
    wrong: dict[str, Any]
    for wrong in ({}, {"vary": {"rank": [1, 2]}}, {"settings": settings, "vary": {"rank": ["x", 1]}}, {"vary": 1}):
        assert client.post(f"{PREFIX}/sweep", json=wrong).status_code == 422
    assert client.get(f"{PREFIX}/comparison", params={"runs": "gone"}).status_code == 409
    assert client.post(f"{PREFIX}/sweep/continue", json={"sweep": answer["sweep"]}).json() == {"queued": 0}
