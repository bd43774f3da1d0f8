"""A run whose images the webui draws, and the epoch grid of a run that has files."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import HostError
from lib_lora_train.core.events import Event, GridDrawn, LoraWritten, Noted, SampleDrawn, StateChanged
from lib_lora_train.hosts.webui.host import WebuiHost
from lib_lora_train.runs import trainer as jobs
from lib_lora_train.runs.folder import RunFolder, new_run_folder
from lib_lora_train.runs.runner import Runner
from lib_lora_train.runs.webui_grid import GridGenerator, find_grid_task
from lib_lora_train.training.control import Control
from tests.stand_ins.webui import WORLDS, World, host_in


class Place(NamedTuple):
    """A run inside a webui."""

    world: World
    host: WebuiHost
    config: TrainConfig
    home: Path

    def run(self, *, during: Any = lambda event: None, **values: Any) -> tuple[list[Event], RunFolder]:
        folder = new_run_folder(self.home, "zok")
        control = Control()
        events = []
        for event in jobs.run_training(self.config.replace(**values), self.host, folder=folder, control=control):
            events.append(event)
            during(event)
            if isinstance(event, StateChanged) and event.state == "waiting":
                self.world.switch_to(0)
        return events, folder


@pytest.fixture(params=["a1111", "forge", "reforge"])
def place(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, demo_dir: Path
) -> Iterator[Place]:
    monkeypatch.setattr("lib_lora_train.training.wait_for_model._RETRY_SECONDS", 0.01)
    monkeypatch.setattr(
        "lib_lora_train.runs.checkpoints.legacy_hash", lambda path: ""
    )  # the stand-ins' checkpoint has no file
    monkeypatch.setattr("lib_lora_train.hosts.webui.host.file_hash", lambda path: "")
    data = tmp_path / "data"
    data.mkdir()
    for path in sorted(next((demo_dir / "train").iterdir()).iterdir())[:4]:
        shutil.copy(path, data)
    config = TrainConfig(
        concepts=(Concept(folder=str(data), trigger="zok"),),
        output_name="zok",
        resolution=64,
        min_bucket=64,
        epochs=2,
        batch_size=1,
        rank=2,
        sample_prompts=("zok --s 2", "a fox --s 2"),
        webui_sampler="DPM++ 2M Karras",
    )
    found = WORLDS[request.param](monkeypatch, tmp_path / "Lora")
    yield Place(found, host_in(found), config, tmp_path / "home")


def of(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def asked(world: World) -> list[str]:
    return [one.prompt for one in world.txt2img.jobs]


# --- a run's own images --------------------------------------------------------------------------


def test_the_webui_draws_the_runs_samples_from_its_files(place: Place) -> None:
    events, folder = place.run()
    loras = ["", " <lora:zok-000001:1>", " <lora:zok-000002:1>"]
    assert asked(place.world) == [f"{prompt}{lora}" for lora in loras for prompt in ("zok", "a fox")]
    assert [event.epoch for event in of(events, SampleDrawn)] == [0, 0, 1, 1, 2, 2]
    with Image.open(of(events, SampleDrawn)[2].path) as image:
        assert image.text["parameters"] == "zok <lora:zok-000001:1>\nSampler: DPM++ 2M"  # type: ignore[attr-defined]
    assert of(events, GridDrawn) and folder.grid.is_file()
    assert not [event for event in of(events, Noted) if event.level == "warning"]


def test_with_samples_off_the_grid_alone_is_drawn_by_the_webui(place: Place) -> None:
    events, _ = place.run(sample_every_n_epochs=0)
    assert asked(place.world)[-2:] == ["zok <lora:zok-000002:1>", "a fox <lora:zok-000002:1>"]
    assert len(asked(place.world)) == 6 and of(events, GridDrawn)


def test_epochs_without_a_file_get_no_samples(place: Place) -> None:
    events, _ = place.run(save_every_n_epochs=2)
    assert [event.epoch for event in of(events, SampleDrawn)] == [0, 0, 2, 2]
    hints = [event.message for event in of(events, Noted) if event.where == "webui_sampler"]
    assert hints == ["the webui draws from files: epochs without one (save_every_n_epochs) get no samples."]


def test_an_interrupted_row_is_left_out_and_the_run_goes_on(place: Place) -> None:
    def interrupt() -> None:
        if len(place.world.txt2img.jobs) == 4:  # the second image of epoch 1
            place.world.txt2img.state.interrupted = True

    place.world.txt2img.during_image = interrupt
    events, folder = place.run()
    assert [event.epoch for event in of(events, SampleDrawn)] == [0, 0, 1, 2, 2]
    (warning,) = [event.message for event in of(events, Noted) if event.level == "warning"]
    assert "Interrupt was pressed" in warning and "epoch 1" in warning
    assert folder.grid.is_file() and of(events, StateChanged)[-1].state == "finished"


def test_another_checkpoint_between_two_samples_makes_the_run_wait(place: Place) -> None:
    def switch() -> None:
        if len(place.world.txt2img.jobs) == 3:
            place.world.select(5)

    place.world.txt2img.during_image = switch
    events, _ = place.run()
    assert [event.state for event in of(events, StateChanged)] == ["running", "waiting", "running", "finished"]
    assert len(of(events, SampleDrawn)) == 6


def test_a_sampler_the_webui_lacks_leaves_the_drawing_to_the_trainer(place: Place) -> None:
    events, _ = place.run(webui_sampler="Euler z", sample_sampler="Euler", sample_steps=1, epochs=1)
    (warning,) = [event.message for event in of(events, Noted) if event.level == "warning"]
    assert "no sampler called Euler z" in warning and "Samples are drawn with Euler." in warning
    assert place.world.txt2img.jobs == [] and len(of(events, SampleDrawn)) == 4


# --- the grid of a run that has files --------------------------------------------------------------


def ran(place: Place) -> Runner:
    """A runner whose run has ended, drawn without the webui."""
    runner = Runner(place.host, place.home)
    runner.start(place.config.replace(webui_sampler="", sample_every_n_epochs=0, make_grid=False))
    runner.wait(120)
    assert runner.status()["state"] == "finished", runner.status()["message"]
    place.world.txt2img.jobs.clear()
    return runner


def test_the_grid_has_a_row_for_each_file_and_one_without(place: Place) -> None:
    ran(place)
    grids = GridGenerator(place.host, place.home)
    run = grids.start("Euler")
    grids.wait(60)
    status = grids.status()
    assert (status["state"], status["run"], status["done"], status["total"]) == ("done", run, 6, 6)
    assert status["path"] == str(place.home / run / "grid.png")
    with Image.open(status["path"]) as grid:
        assert grid.width > 2 * 64 and grid.height > 3 * 64
    assert [prompt.count("<lora:") for prompt in asked(place.world)] == [0, 0, 1, 1, 1, 1]
    assert all(one.sampler_name == "Euler" for one in place.world.txt2img.jobs)


def test_users_generate_between_two_images_of_the_grid(place: Place) -> None:
    ran(place)
    expected = place.world.generate("zok-000001")
    users: list[tuple[int, str]] = []
    threads = []

    def generate() -> None:
        users.append((len(place.world.txt2img.jobs), place.world.generate("zok-000001")))

    def ask() -> None:
        threads.append(threading.Thread(target=generate))
        threads[-1].start()
        while not place.world.queue_lock._pending_threads:
            time.sleep(0.001)

    place.world.txt2img.during_image = ask
    grids = GridGenerator(place.host, place.home)
    grids.start("Euler")
    grids.wait(60)
    for thread in threads:
        thread.join()
    assert grids.status()["state"] == "done"
    assert [at for at, _ in users] == [1, 2, 3, 4, 5, 6] and {image for _, image in users} == {expected}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda world: setattr(world.txt2img.state, "interrupted", True), "Interrupt was pressed"),
        (lambda world: world.select(5), "Another checkpoint was selected"),
    ],
)
def test_a_grid_that_is_given_up_says_why_and_keeps_the_old_one(place: Place, harm: Any, message: str) -> None:
    ran(place)
    task = find_grid_task(place.home)
    task.folder.grid.write_bytes(b"old")
    place.world.txt2img.during_image = lambda: harm(place.world)
    grids = GridGenerator(place.host, place.home)
    grids.start("Euler")
    grids.wait(60)
    assert grids.status()["state"] == "failed" and message in grids.status()["message"]
    assert len(place.world.txt2img.jobs) == 1 and task.folder.grid.read_bytes() == b"old"


def test_one_grid_at_a_time_and_none_without_files(place: Place) -> None:
    grids = GridGenerator(place.host, place.home)
    with pytest.raises(HostError, match="No run has written a LoRA file yet"):
        grids.start("Euler")
    ran(place)
    seen: list[str] = []

    def start_again() -> None:
        with pytest.raises(HostError, match="already being generated"):
            grids.start("Euler")
        seen.append(grids.status()["state"])

    place.world.txt2img.during_image = start_again
    grids.start("Euler")
    grids.wait(60)
    assert seen == ["drawing"] * 6 and grids.status()["state"] == "done"
    grids.start("Euler z")
    grids.wait(60)
    assert "no sampler called Euler z" in grids.status()["message"]


def test_a_run_without_prompts_is_looked_at_with_its_trigger(place: Place) -> None:
    events, folder = place.run(sample_prompts=(), webui_sampler="")
    (folder.root / "events.jsonl").write_text(
        "".join(
            f'{{"kind": "LoraWritten", "path": "{e.path}", "epoch": {e.epoch}, "step": {e.step}}}\n'
            for e in of(events, LoraWritten)
        )
        + '{"kind": "LoraWr'
    )
    task = find_grid_task(place.home)
    assert [prompt.prompt for prompt in task.prompts] == ["zok"]
    assert task.rows == (("epoch 1", "zok-000001"), ("epoch 2", "zok-000002"))
