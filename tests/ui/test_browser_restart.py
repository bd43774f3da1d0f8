"""A restarted app in a real browser: one click continues what was interrupted; another model is asked about first."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.control import Control
from lib_lora_train.core.events import Planned, StateChanged, StepDone
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.runs.records.event_log import log_events, log_line, log_record
from lib_lora_train.runs.records.folder import RunFolder, new_run_folder
from lib_lora_train.runs.runner import Runner
from lib_lora_train.runs.trainer import run_training
from tests.stand_ins.run_parts import NO_SAMPLES, NOT_MEASURED
from tests.stand_ins.tiny_models import write_tiny_checkpoint
from tests.stand_ins.ui import small_config, write_images
from tests.ui.test_browser import _RUN_MS, open_tab, page, pill, pytestmark, serving, show, status

__all__ = ["page", "pytestmark"]


def config_of(home: Path, name: str) -> TrainConfig:
    """Two steps on three images."""
    values = {"output_name": name, "epochs": 1, "max_steps": 2, "rank": 2, "batch_size": 1}
    return small_config(home / "set").replace(**values, **NO_SAMPLES, **NOT_MEASURED)


def stopped_run(home: Path, name: str, checkpoint: Path) -> RunFolder:
    """A run that was stopped after its first step."""
    config, control = config_of(home, name).replace(checkpoint=str(checkpoint)), Control()
    folder = new_run_folder(home / "outputs", name)
    host = StandaloneHost(None, None, home / "models" / "Lora", "cpu")
    for event in log_events(run_training(config, host, folder=folder, control=control), folder.log):
        if isinstance(event, StepDone):
            control.stop()
    return folder


def killed_run(home: Path, name: str) -> None:
    """A run whose process ended before its first training state."""
    folder = new_run_folder(home / "outputs", name)
    write_toml_config(folder.config, config_of(home, name))
    events = (Planned(3, 0, 3, 1, 2), StateChanged("running"))
    folder.log.write_text("".join(log_line(log_record(event)) for event in events), encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a checkpoint that was replaced since, a run that was killed, and a queued one."""
    home = tmp_path_factory.mktemp("home")
    write_images(home / "set", 3)
    checkpoint = write_tiny_checkpoint(home / "fox.safetensors", "sd1")
    stopped_run(home, "replaced", checkpoint)
    checkpoint.unlink()  # its tensors may still be mapped into memory
    write_tiny_checkpoint(checkpoint, "sd1", seed=1)
    killed_run(home, "killed")
    Runner(None, home / "outputs").enqueue(config_of(home, "queued"))
    return home


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """The address of the app after the restart."""
    with serving(home) as address:
        yield address


def wait_for_end(address: str, name: str, ends: Collection[str] = ("finished", "failed")) -> dict[str, Any]:
    """The status once the run of this name has ended in one of these states and nothing is queued."""
    end = time.monotonic() + _RUN_MS / 1000
    while time.monotonic() < end:
        now = status(address)
        if str(now["run"]).endswith(f"-{name}") and now["state"] in ends and not now["queue"]:
            return now
        time.sleep(0.5)
    raise AssertionError(f"{name} did not end: {status(address)}")


def test_one_click_on_the_banner_continues_the_run_and_the_queue(page: Any, address: str, home: Path) -> None:
    open_tab(page, address)
    banner = page.locator(".lt-banner")
    banner.get_by_text("was interrupted before its first saved step. 1 queued run has not started.").wait_for()
    banner.get_by_role("button", name="Continue").click()
    banner.wait_for(state="detached")
    assert wait_for_end(address, "queued")["state"] == "finished"
    pill(page, "Finished")
    loras = sorted(path.stem for path in (home / "models" / "Lora").glob("*.safetensors"))
    assert [name for name in loras if not name.startswith("replaced")] == ["killed-000001", "queued-000001"]
    open_tab(page, address)
    assert page.locator(".lt-banner").count() == 0


def test_another_model_is_asked_about_before_the_run_continues_on_it(page: Any, address: str) -> None:
    open_tab(page, address)
    show(page, "Results")
    run = page.locator(".lt-run", has_text="-replaced")
    run.locator("summary").first.click()
    run.get_by_role("button", name="Resume", exact=True).click()
    pill(page, "Failed", timeout_ms=_RUN_MS)
    offer = page.locator(".lt-offer").get_by_role("button", name="Train on this model…")
    offer.click()
    question = page.get_by_role("alertdialog", name="Train on this model…")
    question.get_by_role("button", name="Cancel").click()
    question.wait_for(state="detached")
    assert status(address)["state"] == "failed", "nothing changes without a yes"
    offer.click()
    question.get_by_role("button", name="Train on this model", exact=True).click()
    wait_for_end(address, "replaced", ends=["finished"])
