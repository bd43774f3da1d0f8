"""Heat maps in a real browser: of a run's samples in Results, and of an image in the caption editor."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.paths import ROOT
from tests.ui.test_browser import address, open_captions, open_tab, page, pytestmark, show, status

__all__ = ["address", "page", "pytestmark"]

_RUN_SECONDS = 300


def _train(address: str, place: Path) -> Path:
    """A finished run with samples; returns the folder of its images."""
    images = place / "zorp"
    images.mkdir()
    for file in sorted(next((ROOT / "assets" / "demo" / "train").iterdir()).iterdir())[:6]:
        shutil.copy(file, images)
    settings = {
        "concepts": [{"folder": str(images), "trigger": "zorp"}],
        "sample_prompts": ["a zorp and a red circle, blue background --s 6 --d 3", "a fox --s 6 --d 4"],
        "resolution": 128,
        "min_bucket": 64,
        "epochs": 1,
        "rank": 4,
        "output_name": "maps",
    }
    request = urllib.request.Request(
        f"{address}lora-train/v1/start", json.dumps(settings).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).close()
    end = time.monotonic() + _RUN_SECONDS
    while status(address)["state"] != "finished":
        assert time.monotonic() < end and status(address)["state"] != "failed", status(address)["message"]
        time.sleep(0.5)
    return images


def _layers(page: Any) -> Any:
    return page.locator("#lora_train_heat .lt-heat-layer")


def _wait_for_layers(page: Any, count: int) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('#lora_train_heat .lt-heat-layer').length === count", arg=count
    )


def test_a_sample_and_an_image_of_the_dataset_show_the_maps_of_the_words_that_are_chosen(
    page: Any, address: str, tmp_path: Path
) -> None:
    images = _train(address, tmp_path)
    open_tab(page, address)
    show(page, "Results")
    page.locator(".lt-run summary", has_text="maps").wait_for()
    if not page.locator(".lt-run[open]").count():
        page.locator(".lt-run summary").first.click()
    page.locator(".lt-run .lt-sheet tbody tr", has_text="Epoch 1").locator("button").first.click()
    page.locator("#lora_train_view").get_by_role("button", name="Heat maps").click()
    _wait_for_layers(page, 1)  # the first word that is not an article, at once
    words = page.locator(".lt-heat-word").all_text_contents()
    assert words == ["a", "zorp", "and", "red", "circle", "blue background"]
    page.locator(".lt-heat-word", has_text="blue background").click()
    page.locator(".lt-heat-word", has_text="circle").click()
    _wait_for_layers(page, 3)
    page.locator("#lora_train_heat input").fill("red circle")
    page.keyboard.press("Enter")
    _wait_for_layers(page, 4)
    before = _layers(page).first.get_attribute("src")
    page.locator(".lt-heat-lora").select_option("")
    page.wait_for_function(
        "before => ![...document.querySelectorAll('.lt-heat-layer')].some((one) => one.src === before)", arg=before
    )
    page.locator("#lora_train_heat input").fill("dog")
    page.keyboard.press("Enter")
    page.locator(".lt-heat-bad", has_text="“dog” is not in the prompt. Choose among: a, zorp").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator("#lora_train_heat, #lora_train_view").count()

    show(page, "Captions")
    open_captions(page, images, 3)
    page.locator(".lt-c-gallery figure").first.click()
    page.locator(".lt-c-editor textarea").fill("a zorp, red hat")
    page.locator(".lt-c-editor").get_by_role("button", name="Heat maps").click()
    _wait_for_layers(page, 1)
    assert page.locator(".lt-heat-word").all_text_contents() == ["a zorp", "red hat"]
    assert page.locator(".lt-heat-lora option").count() == 2  # without LoRA, and the run's file
