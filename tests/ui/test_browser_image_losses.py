"""Images by loss in a real browser: the reasons, and what each button leads to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.evaluation.image_excess import ImageLoss
from lib_lora_train.runs.measures.image_list import ImageList, write_images
from tests.paths import ROOT
from tests.stand_ins.past_run import write_past_run
from tests.ui.test_browser import _RUN_MS, open_tab, page, pytestmark, serving, show, value

__all__ = ["page", "pytestmark"]

_SHOTS = os.environ.get("LORA_TRAIN_SHOTS", "")  # a folder for screenshots, to look at


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's images in a separate folder."""
    return Path(shutil.copytree(ROOT / "assets" / "demo" / "train", tmp_path_factory.mktemp("data") / "zorp"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Iterator[str]:
    """The app with one past run whose images are measured: 04 is nearly 12, and the loss of 09 did not fall."""
    home = tmp_path_factory.mktemp("home")
    folder = write_past_run(home)
    write_images(folder, _losses(sorted(images.rglob("*.png"))))
    with serving(home) as address:
        yield address


def _losses(paths: list[Path]) -> ImageList:
    measured = []
    for number, path in enumerate(paths, 1):
        loss = 0.1 + 0.004 * number
        near = paths[11] if number == 4 else paths[3] if number == 12 else paths[number % 16]
        alike = 0.98 if number in (4, 12) else 0.7 - 0.01 * number
        trained = loss * (2.2 if number == 9 else 1)
        nearest = ((str(near), alike), (str(paths[(number + 1) % 16]), 0.5))
        measured.append(
            ImageLoss(str(path), str(path.parent), (trained,), (loss * 1.2 + number % 5 / 400,), (loss * 2,), nearest)
        )
    captions = {str(path): path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths}
    return ImageList(3, tuple(measured), captions)


def _open_list(page: Any, address: str) -> Any:
    open_tab(page, address)
    show(page, "Results")
    section = page.locator(".lt-run .lt-losses")
    section.locator("summary").click(timeout=_RUN_MS)
    section.locator("li").first.wait_for()
    return section


def _shot(page: Any, name: str) -> None:
    if _SHOTS:
        page.screenshot(path=str(Path(_SHOTS) / f"{name}.png"), full_page=True)


def test_what_stands_out_comes_first_with_its_reason_neighbours_and_caption(page: Any, address: str) -> None:
    section = _open_list(page, address)
    first, second = section.locator("li").nth(0), section.locator("li").nth(1)
    assert "09.png" in first.inner_text() and "Its loss rose by 10%, the others' fell by 50%." in first.inner_text()
    assert "Nearly the same as 04.png" in second.inner_text()
    assert section.locator(".lt-measured-head").inner_text() == "16 images, measured after epoch 3: 2 stand out."
    assert section.locator("li").count() == 12
    section.get_by_role("button", name="Show more").click()
    assert section.locator("li").count() == 16

    second.get_by_role("button", name="Look at its neighbours").click()
    near = second.locator(".lt-measured-near figure")
    assert near.count() == 2 and "98% alike" in near.first.inner_text()
    page.wait_for_function("() => [...document.querySelectorAll('.lt-losses img')].every((one) => one.complete)")
    _shot(page, "losses-light")
    near.first.locator("button").click()
    page.locator("#lora_train_view", has_text="04.png").wait_for()
    page.get_by_role("button", name="Row above").click()  # beside the image itself
    page.keyboard.press("Escape")

    first.get_by_role("button", name="Fix the caption").click()
    editor = page.locator(".lt-c-editor")
    editor.locator("b", has_text="09.png").wait_for(timeout=_RUN_MS)
    assert editor.locator("textarea").input_value() == "zorp, red background"
    _shot(page, "losses-caption")


def test_leaving_an_image_out_changes_the_settings(page: Any, address: str) -> None:
    section = _open_list(page, address)
    section.locator("li").first.get_by_role("button", name="Leave out").click()
    page.locator(
        ".lt-strip, #lora_train_strip", has_text="The next run leaves 10_zorp mascot/09.png out."
    ).first.wait_for()
    show(page, "Train")
    page.locator("#lora_train_advanced").get_by_text("Advanced", exact=True).click()
    page.locator("#lora_train_leave_out_images").wait_for()
    assert value(page, "leave_out_images") == "10_zorp mascot/09.png"


def test_the_list_can_be_read_in_the_dark(page: Any, address: str) -> None:
    section = _open_list(page, f"{address}?__theme=dark")
    section.locator("li").nth(1).get_by_role("button", name="Look at its neighbours").click()
    assert page.evaluate("document.body.classList.contains('dark')")
    page.wait_for_function("() => [...document.querySelectorAll('.lt-losses img')].every((one) => one.complete)")
    _shot(page, "losses-dark")
