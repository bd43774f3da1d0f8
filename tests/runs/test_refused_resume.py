"""A run whose images or settings have changed is not resumed: what has changed is named, and what to do is offered."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lib_lora_train.core.control import Control
from lib_lora_train.core.errors import ResumeRefusedError
from lib_lora_train.core.events import StateChanged
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.records.past_runs import find_resume_point
from lib_lora_train.runs.resuming import refuse_other_run
from lib_lora_train.runs.runner import Runner
from lib_lora_train.runs.trainer import run_training
from lib_lora_train.training.training_state import load_state
from lib_lora_train.web.runs import RunSession
from tests.stand_ins.run_parts import NO_SAMPLES, RunSetup, small_run_setup


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, demo_dir: Path) -> RunSetup:
    """A run of one epoch."""
    place = tmp_path_factory.mktemp("run")
    setup = small_run_setup(StandaloneHost(None, None, place, "cpu"), demo_dir, place)
    setup = setup._replace(config=setup.config.replace(**NO_SAMPLES, epochs=1))
    running = run_training(setup.config, setup.host, folder=setup.folder, control=Control())
    list(log_events(running, setup.folder.log))
    return setup


@pytest.fixture
def setup(trained: RunSetup, tmp_path: Path) -> RunSetup:
    """The run with a copy of its images, which may be changed."""
    (concept,) = trained.config.concepts
    folder = tmp_path / Path(concept.folder).name
    shutil.copytree(concept.folder, folder)
    moved = type(concept)(folder=str(folder), trigger=concept.trigger)
    return trained._replace(config=trained.config.replace(concepts=(moved,)))


def images_of(setup: RunSetup) -> list[Path]:
    return sorted(path for path in Path(setup.config.concepts[0].folder).iterdir() if path.suffix == ".png")


def refusal(setup: RunSetup) -> str:
    state = load_state(setup.folder.saved_states()[3])
    with pytest.raises(ResumeRefusedError) as error:
        refuse_other_run(state, setup.config, plan_run(setup.config).plan, setup.folder)
    return str(error.value)


def repaint(path: Path) -> None:
    Image.new("RGB", (128, 128), "red").save(path)


def repaint_and_rename(path: Path) -> None:
    repaint(path)
    path.with_suffix(".txt").write_text("zorp, other")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "caption": (lambda path: path.with_suffix(".txt").write_text("zorp, other"), "{}: its caption changed"),
    "pixels": (repaint, "{}: the image itself changed"),
    "caption and pixels": (repaint_and_rename, "{}: the image itself and its caption changed"),
    "missing": (lambda path: path.unlink(), "{} is missing"),
    "new": (lambda path: shutil.copy(path, path.with_name("zzz.png")), "data/zzz.png is new"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_refusal_names_the_file_and_what_changed(change: str, setup: RunSetup) -> None:
    work, sentence = CHANGES[change]
    path = images_of(setup)[1]
    work(path)
    message = refusal(setup)
    assert sentence.format(f"data/{path.name}") in message
    assert f"or start a new run with continue_from = {setup.host.lora_dir / 'test-000001.safetensors'}" in message


def test_refusal_names_every_file_up_to_five_and_counts_the_rest(setup: RunSetup) -> None:
    for number in range(8):
        repaint(images_of(setup)[0].with_name(f"new{number}.png"))
    message = refusal(setup)
    assert message.count(" is new") == 5 and "and 3 more" in message


def test_other_differences_are_not_blamed_on_a_file(setup: RunSetup) -> None:
    message = refusal(setup._replace(config=setup.config.replace(batch_size=2)))
    assert "batch_size was 1" in message and ".png" not in message


def test_unchanged_images_are_resumed(setup: RunSetup) -> None:
    state = load_state(setup.folder.saved_states()[3])
    refuse_other_run(state, setup.config, plan_run(setup.config).plan, setup.folder)


def test_page_offers_to_continue_from_the_last_file(trained: RunSetup) -> None:
    path = images_of(trained)[0].with_suffix(".txt")
    before, folder = path.read_text(), trained.folder
    path.write_text("zorp, other")
    runner = Runner(trained.host, folder.root.parent)
    try:
        runner.resume_run(folder.root.name, more_epochs=1)
        runner.wait(60)
    finally:
        path.write_text(before)
    status = runner.status()
    assert (status["state"], status["offer"]) == ("failed", "continue-from") and path.stem in status["message"]
    staged = []
    runs = RunSession(runner, folder.root.parent, None, lambda config, run: staged.append(config))  # type: ignore[arg-type]
    offer = runs.describe_offer(status["offer"], status["run"])
    assert offer["label"] == "Continue from test-000001"
    runs.actions()[offer["action"]]({"run": status["run"]})
    assert Path(staged[0].continue_from) == trained.host.lora_dir / "test-000001.safetensors"
    assert find_resume_point(folder, more_epochs=1).config.continue_from == ""
    assert StateChanged("failed", "").offer == "" == Runner(None, folder.root.parent).status().get("offer", "")
