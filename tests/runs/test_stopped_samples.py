"""Drawing samples: its steps are shown, and Stop and Pause take effect within one of them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lib_lora_train.cli.terminal import Terminal
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import (
    Event,
    PhaseStarted,
    Progress,
    SampleDrawn,
    SamplesStarted,
    StateChanged,
    StepDone,
)
from lib_lora_train.core.progress import Eta
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs import trainer
from lib_lora_train.runs.records.event_log import log_events
from lib_lora_train.runs.records.past_runs import find_resume_point, past_runs
from tests.stand_ins.run_parts import RunSetup, ending, only, small_run_setup

SAMPLES = {"sample_prompts": ("zorp --s 6 --l 1 --d 5", "fox --s 6 --l 1"), "epochs": 1}


@pytest.fixture(scope="module")
def shared_host(tmp_path_factory: pytest.TempPathFactory) -> StandaloneHost:
    """One host, so that the checkpoint is read once."""
    return StandaloneHost(None, None, tmp_path_factory.mktemp("unused"), "cpu")


@pytest.fixture
def setup(shared_host: StandaloneHost, demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSetup:
    monkeypatch.setattr("lib_lora_train.runs.images.samples.TURN_SECONDS", 0.0)  # an event for every step
    return small_run_setup(shared_host, demo_dir, tmp_path)


def run(
    setup: RunSetup, during: Callable[[Event, Control], None], *, resumes: bool = False, **values: Any
) -> list[Event]:
    """A run in its log, new or resumed; `during` is called with each event."""
    config, control = setup.config.replace(**{**SAMPLES, **values}), Control()
    state = find_resume_point(setup.folder).state if resumes else None
    events = []
    running = trainer.run_training(config, setup.host, folder=setup.folder, control=control, state=state)
    for event in log_events(running, setup.folder.log):
        events.append(event)
        during(event, control)
    return events


def in_samples(event: Event, step: int) -> bool:
    return isinstance(event, Progress) and event.phase == "samples" and event.step == step


def files_of(setup: RunSetup) -> list[str]:
    return sorted(path.name for path in setup.folder.samples.iterdir())


def pixels_of(setup: RunSetup) -> dict[str, bytes]:
    """Each sample without its infotext, which names the LoRA file."""
    pixels = {}
    for path in setup.folder.samples.iterdir():
        with Image.open(path) as image:
            pixels[path.name] = image.tobytes()
    return pixels


def resume(setup: RunSetup, **values: Any) -> list[Event]:
    return run(setup, lambda event, control: None, resumes=True, **values)


MOMENTS: dict[str, dict[str, Any]] = {
    "of an epoch": {},
    "of a step": {"sample_every_n_steps": 2, "sample_every_n_epochs": 0, "make_grid": False},
    "at the end": {"sample_every_n_epochs": 0},
    "Sample now": {"sample_every_n_epochs": 0, "make_grid": False},
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_stop_takes_effect_within_one_sampling_step_and_resuming_draws_what_is_missing(
    moment: str, setup: RunSetup
) -> None:
    stopped_at: list[int] = []
    has_trained = []

    def stop(event: Event, control: Control) -> None:
        if isinstance(event, StepDone):
            has_trained.append(event.step)
            if moment == "Sample now" and event.step == 2:
                control.sample_now()
        if has_trained and in_samples(event, 2):
            control.stop()
            stopped_at.append(1)

    events = run(setup, stop, **MOMENTS[moment])
    assert ending(events) == "stopped" and stopped_at == [1], "no sampling step came after the stop"
    cut = only(events, SamplesStarted)[-1]
    cut_files = [f"epoch-{cut.epoch:06}" if not cut.step else f"step-{cut.step:08}"]
    assert not [name for name in files_of(setup) if name.startswith(cut_files[0])], "no half file, no part of a row"
    assert all(path.suffix == ".png" for path in setup.folder.samples.iterdir())

    again = resume(setup, **MOMENTS[moment])
    assert ending(again) == "finished"
    drawn = [(event.epoch, event.step) for event in only(again, SampleDrawn)]
    assert drawn.count((cut.epoch, cut.step)) == 2
    assert len(drawn) == len(set(drawn)) * 2, "nothing is drawn twice"


def test_stopped_and_paused_samples_equal_uninterrupted_ones(setup: RunSetup) -> None:
    run(setup, lambda event, control: control.stop() if in_samples(event, 3) else None)
    assert next(past_runs(setup.folder.root.parent))["can_begin_again"]
    run(setup, lambda event, control: None)
    first = pixels_of(setup)

    def pause(event: Event, control: Control) -> None:
        if in_samples(event, 3):
            control.pause()
        elif event == StateChanged("paused"):
            assert setup.host.lease().__enter__() is not None, "the model is free during the pause"
            setup.host._lock.release()
            control.resume()

    for name in files_of(setup):
        (setup.folder.samples / name).unlink()
    events = run(setup, pause)
    assert StateChanged("paused") in events
    assert pixels_of(setup) == first


def test_stop_and_pause_take_effect_while_images_are_encoded(setup: RunSetup) -> None:
    seen = []

    def stop(event: Event, control: Control) -> None:
        if isinstance(event, Progress) and event.phase == "latents":
            seen.append(event.done)
            control.pause() if len(seen) == 1 else control.stop()
        if event == StateChanged("paused"):
            control.resume()

    events = run(setup, stop, resolution=64, max_bucket=128)
    assert ending(events) == "stopped" and not only(events, StepDone)
    assert StateChanged("paused") in events


def test_strip_and_terminal_show_the_sampling_step() -> None:
    one, several = Progress("samples", 1, 4, 1, 7, 20), Progress("samples", 4, 8, 4, 7, 20)
    assert (one.text, several.text) == ("sample 2 of 4, step 7 of 20", "samples 5 to 8 of 8, step 7 of 20")
    assert Progress("samples", 2, 4).text == "" == Progress("latents", 2, 4).text
    eta = Eta()
    for event in (PhaseStarted("samples", 4), one):
        eta.handle(event)
    assert eta.text == one.text and (eta.done, eta.total) == (1, 4) and eta.share == pytest.approx(1.35 / 4)
    assert one.text in Terminal(io.StringIO(), width=100).meter(one)
