"""Sweeps and comparisons in a real browser, with its own server and runs that were trained before."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.events import EpochDone, Event, Measured, SampleDrawn, StateChanged
from lib_lora_train.core.measures import LIKENESS
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import RunFolder, write_json
from lib_lora_train.runs.sweeps.sweep import make_variants, parse_axes
from lib_lora_train.runs.sweeps.sweep_record import write_sweep
from tests.stand_ins.ui import small_config, write_images
from tests.ui.test_browser import WITHOUT_TOOLTIP, open_tab, page, pytestmark, serving, show

__all__ = ["page", "pytestmark"]


def write_run(home: Path, run: str, config: TrainConfig, likeness: float, origin: dict[str, Any] | None = None) -> None:
    """A finished run of two epochs with samples."""
    folder = RunFolder(home / run)
    images = sorted(write_images(folder.samples, 3).glob("*.png"))
    write_toml_config(folder.config, config)
    if origin:
        write_json(folder.origin, origin)
    events: list[Event] = [StateChanged("running"), SampleDrawn(str(images[0]), 0, "zkw", 1)]
    for epoch in (1, 2):
        events += [EpochDone(epoch, epoch, 0.1), Measured(epoch, {LIKENESS: likeness / epoch})]
        events.append(SampleDrawn(str(images[epoch]), epoch, "zkw", 1))
    events.append(StateChanged("finished"))
    folder.log.write_text("".join(log_line(log_record(event)) for event in events), encoding="utf-8")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with a sweep of three runs, of which one was never started, and two other runs."""
    home = tmp_path_factory.mktemp("home")
    outputs = home / "outputs"
    config = small_config(write_images(home / "set", 3))
    variants = make_variants(config, parse_axes([("rank", "2, 4, 8")], config))
    sweep = write_sweep(outputs, "", variants, "small")
    for number, variant in enumerate(variants[:2]):
        write_run(outputs, f"20260103-00000{number}-swept", variant.config, 0.4 + number / 5, sweep.origin(number))
    write_run(outputs, "20260101-000000-plain", config, 0.3)
    write_run(outputs, "20260102-000000-pruned", config.replace(leave_out_tags=("image 0",)), 0.9)
    with serving(home) as found:
        yield found


def rows_of(page: Any) -> list[str]:
    lines = page.locator(".lt-x-table tbody tr").all_text_contents()
    return [re.sub(r"\s+", " ", line) for line in lines]


def test_the_runs_of_a_sweep_are_shown_side_by_side(page: Any, address: str) -> None:
    open_tab(page, address)
    show(page, "Results")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.locator(".lt-x-table").wait_for()
    first, second = rows_of(page)
    assert "2" in first and "0.40" in first and "best" not in first
    assert "0.60" in second and "best" in second and "+0.20" in second
    assert page.locator(".lt-x-waiting").text_content() == "rank 8: missing"
    assert page.locator(".lt-parallel path").count() == 2
    assert page.locator(".lt-x-sheet img").count() == 3, "no LoRA and the best epoch of both"
    page.get_by_role("button", name="Likeness").click()
    page.get_by_role("button", name="Likeness").click()
    assert "0.60" in rows_of(page)[0] and page.locator("th[aria-sort='descending']").count() == 1
    page.get_by_text("All epochs side by side").click()
    page.locator(".lt-x-pair img").nth(5).wait_for()
    assert page.evaluate(WITHOUT_TOOLTIP) == []
    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_two_marked_runs_are_compared(page: Any, address: str) -> None:
    open_tab(page, address)
    show(page, "Results")
    page.get_by_label("Compare 20260101-000000-plain", exact=True).check()
    page.get_by_text("Mark another run to compare it with 20260101-000000-plain.").wait_for()
    page.get_by_label("Compare 20260102-000000-pruned", exact=True).check()
    page.locator(".lt-x-table").wait_for()
    first, second = rows_of(page)
    assert "empty" in first and "image 0" in second and "+0.60" in second
    assert page.locator(".lt-run[open]").count() <= 1, "marking a run does not unfold it"
    page.get_by_label("Compare 20260102-000000-pruned", exact=True).uncheck()
    page.locator(".lt-x-table").wait_for(state="detached")


def test_a_change_is_previewed_with_its_problems_before_anything_is_queued(page: Any, address: str) -> None:
    open_tab(page, address)
    show(page, "Results")
    run = page.locator(".lt-run", has_text="20260101-000000-plain")
    run.locator("summary > b").first.click()
    run.get_by_role("button", name="Repeat with a change…").click()
    form = run.locator(".lt-sweep")
    start = form.get_by_role("button", name="Queue")
    form.get_by_label("Values").fill("image 1 | image 1, image 2")
    form.get_by_text("2 runs: small-leave_out_tags_image_1").wait_for()
    assert start.text_content() == "Queue 2 runs" and start.is_enabled()
    form.get_by_label("Values").fill("zkw")
    form.get_by_text("fits the trigger 'zkw'").wait_for()
    assert start.is_disabled()
    form.get_by_role("button", name="+ Setting").click()
    form.get_by_label("Setting", exact=True).nth(1).fill("rnak")
    form.get_by_label("Values").nth(1).fill("2")
    form.get_by_text("Did you mean 'rank'?").wait_for()
    assert page.evaluate(WITHOUT_TOOLTIP) == []
    form.get_by_role("button", name="Cancel").click()
    form.wait_for(state="detached")
