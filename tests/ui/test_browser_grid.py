"""Grids of past runs in a real browser: drawn, shown while they are drawn, enlarged, compared, continued."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stand_ins.past_run import write_past_run
from tests.ui.test_browser import _RUN_MS, open_tab, page, pytestmark, serving, show

__all__ = ["page", "pytestmark"]

_SHOTS = os.environ.get("LORA_TRAIN_SHOTS", "")  # a folder for screenshots, to look at


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with one past run of three epochs."""
    home = tmp_path_factory.mktemp("home")
    write_past_run(home)
    with serving(home) as address:
        yield address


def _shot(page: Any, name: str) -> None:
    if _SHOTS:
        page.screenshot(path=str(Path(_SHOTS) / f"{name}.png"))


def _open_grids(page: Any, address: str) -> Any:
    open_tab(page, address)
    show(page, "Results")
    tools = page.locator(".lt-run .lt-grid-tools")
    tools.wait_for(timeout=_RUN_MS)
    return tools


def _drawn(page: Any, tools: Any, images: int) -> None:
    """Wait until the grid has this many images, and all its thumbnails are loaded."""
    tools.locator(".lt-grid-status", has_text="Grid saved").wait_for(timeout=_RUN_MS)
    page.wait_for_function(
        "n => document.querySelectorAll('.lt-grid-sheet .lt-thumb img').length === n", arg=images, timeout=_RUN_MS
    )


def _view(page: Any) -> Any:
    view = page.locator("#lora_train_view")
    view.wait_for()
    return view


def _scale(view: Any) -> float:
    style = view.locator(".lt-view-image").get_attribute("style") or ""
    found = re.search(r"scale\(([\d.]+)\)", style)
    return float(found[1]) if found else 1.0


def test_cells_appear_while_the_grid_is_drawn_and_a_cancelled_one_goes_on(page: Any, address: str) -> None:
    tools = _open_grids(page, address)
    tools.get_by_label("Strengths").fill("1, 2")
    tools.get_by_role("button", name="Draw grid").click()
    tools.locator(".lt-thumb").first.wait_for(timeout=_RUN_MS)
    assert tools.locator(".lt-waiting").count() > 0
    tools.get_by_role("button", name="Cancel").click()
    tools.locator(".lt-grid-status", has_text="are kept").wait_for(timeout=_RUN_MS)
    page.reload()
    tools = _open_grids(page, address)
    tools.locator(".lt-thumb").first.wait_for(timeout=_RUN_MS)
    assert tools.locator(".lt-waiting").count() > 0
    _shot(page, "partial")
    tools.get_by_role("button", name="Overfit test").click()
    _drawn(page, tools, 21)
    rows = tools.locator(".lt-sheet tbody th").all_inner_texts()
    assert rows[:3] == ["no LoRA", "epoch 1 · ×1", "epoch 1 · ×2"] and len(rows) == 7
    assert tools.locator(".lt-blocks th").all_inner_texts()[1:] == ["Should change", "Control: should not change"]
    tools.scroll_into_view_if_needed()
    _shot(page, "sheet")


def test_all_triggers_are_drawn_with_one_click(page: Any, address: str) -> None:
    tools = _open_grids(page, address)
    tools.get_by_role("button", name="All triggers × all epochs").click()
    _drawn(page, tools, 8)
    assert tools.locator(".lt-sheet thead tr:last-child th").all_inner_texts()[1:] == ["zorp", "mip"]


def test_arrow_keys_move_and_plus_and_minus_zoom(page: Any, address: str) -> None:
    tools = _open_grids(page, address)
    tools.get_by_role("button", name="Overfit test").click()
    _drawn(page, tools, 21)
    first = tools.locator(".lt-thumb").first
    first.click()
    view = _view(page)
    title = view.locator("p b")
    assert title.inner_text() == "no LoRA"
    page.keyboard.press("ArrowDown")
    assert title.inner_text() == "epoch 1 · ×1"
    page.keyboard.press("ArrowRight")
    assert "blue background" in view.locator("p span").inner_text()
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft", "ArrowLeft"):  # stops at the border
        page.keyboard.press(key)
    assert title.inner_text() == "no LoRA"
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert _scale(view) > 1.5 and view.locator(".lt-view-zoom").inner_text() == "156%"
    page.keyboard.press("ArrowDown")
    assert _scale(view) > 1.5, "the next image is shown as large, to compare a detail"
    page.keyboard.press("-")
    page.keyboard.press("0")
    assert _scale(view) == 1.0
    page.mouse.move(700, 400)
    page.mouse.wheel(0, -100)
    page.wait_for_function("document.querySelector('.lt-view-zoom').textContent === '125%'")
    page.keyboard.press("Escape")
    view.wait_for(state="detached")
    assert first.evaluate("one => one === document.activeElement")


def test_a_slider_compares_two_images_with_keys_and_mouse(page: Any, address: str) -> None:
    tools = _open_grids(page, address)
    tools.get_by_role("button", name="Overfit test").click()
    _drawn(page, tools, 21)
    tools.locator(".lt-thumb").nth(3).click()
    view = _view(page)
    slider = view.get_by_label("Border between the two images")
    assert not slider.is_visible()
    page.keyboard.press("c")
    assert slider.is_visible() and view.locator("p b").inner_text() == "no LoRA | epoch 1 · ×1"
    clip = "getComputedStyle(document.querySelector('.lt-view-other')).clipPath"
    half = page.evaluate(clip)
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert slider.input_value() == "60" and page.evaluate(clip) != half
    assert view.locator("p b").inner_text() == "no LoRA | epoch 1 · ×1", "the keys moved the slider only"
    _shot(page, "compare")
    stage = view.locator(".lt-view-stage").bounding_box()
    page.mouse.move(stage["x"] + stage["width"] * 0.6, stage["y"] + 50)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.2, stage["y"] + 50)
    page.mouse.up()
    assert slider.input_value() in ("20", "19", "21")
    view.get_by_role("button", name="Keep this image").click()  # compared with itself: nothing to slide
    assert not slider.is_visible()
    view.locator(".lt-view-stage").click()
    page.keyboard.press("ArrowDown")
    assert view.locator("p b").inner_text() == "epoch 1 · ×1 | epoch 1 · ×2" and slider.is_visible()
    page.keyboard.press("p")
    page.keyboard.press("b")
    assert view.locator("p b").inner_text() == "epoch 1 · ×1 | epoch 1 · ×2"


def _maps(page: Any, count: int, before: list[str] | None = None) -> list[str]:
    """Wait until as many maps are shown, none of them of `before`, and nothing is under way; their images."""
    page.wait_for_function(
        """([count, before]) => {
            const shown = [...document.querySelectorAll('.lt-view-map')].filter((one) => !one.hidden);
            const line = document.querySelector('.lt-view-line').textContent;
            return shown.length === count && line.split('at most').length === count + 1
                && !shown.some((one) => before.includes(one.src));
        }""",
        arg=[count, before or []],
        timeout=_RUN_MS,
    )
    return [one.get_attribute("src") for one in page.locator(".lt-view-map:not([hidden])").all()]


def test_the_words_of_a_prompt_are_shown_on_a_cell_with_and_without_its_lora_and_on_both_that_are_compared(
    page: Any, address: str
) -> None:
    tools = _open_grids(page, address)
    tools.get_by_role("button", name="Overfit test").click()
    _drawn(page, tools, 21)
    tools.locator(".lt-thumb").nth(4).click()
    view = _view(page)
    assert not view.locator(".lt-view-words").is_visible()
    page.keyboard.press("w")
    first = _maps(page, 1)
    words = view.locator(".lt-heat-word")
    assert words.all_inner_texts() == ["zorp", "blue background"]
    assert view.locator(".lt-heat-word[aria-pressed=true]").all_inner_texts() == ["zorp"]
    words.nth(1).click()
    both = _maps(page, 1, first)
    words.nth(0).click()
    background = _maps(page, 1, [*first, *both])
    _shot(page, "words")
    page.keyboard.press("l")
    without = _maps(page, 1, background)
    page.keyboard.press("l")
    assert _maps(page, 1, without) == background, "the map is kept"
    page.keyboard.press("ArrowDown")
    _maps(page, 1, background)
    assert view.locator(".lt-heat-word[aria-pressed=true]").all_inner_texts() == ["blue background"]
    page.keyboard.press("c")
    _maps(page, 2)
    clips = page.evaluate(
        "[...document.querySelectorAll('.lt-view-other')].map((one) => getComputedStyle(one).clipPath)"
    )
    assert len(clips) == 2 and clips[0] == clips[1] != "none", "the map ends where its image does"
    _shot(page, "words-compare")
    page.keyboard.press("+")
    styles = page.evaluate("[...document.querySelectorAll('.lt-view-stage img')].map((one) => one.style.transform)")
    assert len(set(styles)) == 1, "the maps are zoomed with their images"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")  # the first row is compared with itself, and has no LoRA
    _maps(page, 1)
    assert not view.locator(".lt-view-lora").is_visible()
    page.keyboard.press("w")
    assert not view.locator(".lt-view-words").is_visible() and not view.locator(".lt-view-map:visible").count()


def test_the_samples_of_a_run_have_the_words_too(page: Any, address: str) -> None:
    _open_grids(page, address)
    page.locator(".lt-run .lt-sheet").first.locator(".lt-thumb").nth(0).click()
    view = _view(page)
    view.get_by_role("button", name="Show where in the image the words").click()
    _maps(page, 1)


def test_grid_and_view_fit_a_narrow_screen(page: Any, address: str) -> None:
    page.set_viewport_size({"width": 420, "height": 800})
    tools = _open_grids(page, address)
    tools.get_by_role("button", name="Overfit test").click()
    _drawn(page, tools, 21)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    tools.scroll_into_view_if_needed()
    _shot(page, "narrow")
    tools.locator(".lt-thumb").nth(4).click()
    view = _view(page)
    page.keyboard.press("c")
    outside = """() => [...document.querySelectorAll('#lora_train_view :is(button, input, .lt-view-stage, p)')]
        .filter((one) => !one.hidden).map((one) => one.getBoundingClientRect())
        .filter((box) => box.left < 0 || box.right > innerWidth + 0.5 || box.bottom > innerHeight + 0.5).length"""
    assert page.evaluate(outside) == 0
    page.keyboard.press("w")
    _maps(page, 2)
    assert page.evaluate(outside) == 0
    _shot(page, "narrow-view")
    for _ in range(12):
        page.keyboard.press("Tab")
        assert view.evaluate("view => view.contains(document.activeElement)")
