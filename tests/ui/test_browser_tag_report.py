"""The report on tags in a real browser: what stands out, the images behind it, and a run without the tag."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from lib_lora_train.evaluation.tag_report import TagMeasure, TagPull
from lib_lora_train.runs.measures.tag_list import TagList, write_tags
from lib_lora_train.runs.records.folder import RunFolder
from tests.stand_ins.past_run import write_past_run
from tests.ui.test_browser import _RUN_MS, open_tab, page, pytestmark, serving, show

__all__ = ["page", "pytestmark"]

_SHOTS = os.environ.get("LORA_TRAIN_SHOTS", "")  # a folder for screenshots, to look at
_SEEDS = 8


def _about(value: float) -> tuple[float, ...]:
    return tuple(value + 0.01 * (-1) ** n for n in range(_SEEDS))


def _tag(tag: str, images: int, having: float, effect: float, pulls: tuple[TagPull, ...] = ()) -> TagMeasure:
    low = _about(0.1)
    return TagMeasure(
        "zorp", tag, f"zorp, {tag}", images, 16, 4.0, low, low, _about(having), _about(effect), _about(0.6), pulls
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with one past run whose tags are measured: `hat` is a thief, `tree` brings `beach` along."""
    home = tmp_path_factory.mktemp("home")
    folder = write_past_run(home)
    beach = TagPull("beach", 4, 5, 4.0, _about(0.1), _about(0.1), _about(0.9), _about(0.8))
    tags = (
        _tag("hat", 12, 0.9, 1.2),
        _tag("glossy", 8, 0.1, 0.3),
        _tag("tree", 4, 0.8, 1.1, (beach,)),
        _tag("beach", 5, 0.9, 1.3),
        TagMeasure("zorp", "cape", "zorp, cape", 1, 16),
    )
    write_tags(folder, TagList(3, "zorp", {"zorp": "zorp"}, tags))
    _draw(folder, "zorp", "teal")
    _draw(folder, "zorp, hat", "crimson")
    with serving(home) as address:
        yield address


def _draw(folder: RunFolder, prompt: str, colour: str) -> None:
    for number in range(1, _SEEDS + 1):
        path = folder.tag_image("zorp", prompt, number)
        path.parent.mkdir(exist_ok=True)
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((4 * number, 10, 4 * number + 24, 50), fill=colour)
        image.save(path)


def _open_report(page: Any, address: str) -> Any:
    open_tab(page, address)
    show(page, "Results")
    section = page.locator(".lt-run .lt-tags")
    section.locator("summary").click(timeout=_RUN_MS)
    section.locator("li").first.wait_for()
    return section


def _shot(page: Any, name: str) -> None:
    if _SHOTS:
        page.screenshot(path=str(Path(_SHOTS) / f"{name}.png"), full_page=True)


def test_tags_that_stand_out_come_first_with_their_images_one_click_away(page: Any, address: str) -> None:
    section = _open_report(page, address)
    assert section.locator(".lt-measured-head").inner_text() == "5 tags, measured after epoch 3: 3 stand out."
    names = section.locator("li b").all_inner_texts()
    assert names == ["hat", "tree", "glossy", "beach", "cape"]
    first = section.locator("li").first
    assert "zorp alone shows 10% of what this tag stands for, with the tag it is 90%." in first.inner_text()
    assert "It brings beach along" in section.locator("li").nth(1).inner_text()
    first.get_by_role("button", name="With and without").click()
    images = first.locator("img")
    images.first.wait_for()
    assert images.count() == 2 * _SEEDS
    page.wait_for_function("() => [...document.querySelectorAll('.lt-tags img')].every((one) => one.complete)")
    _shot(page, "tags-light")
    images.nth(_SEEDS).click()
    page.locator("#lora_train_view", has_text="zorp, hat").wait_for()
    page.get_by_role("button", name="Row above").click()  # beside the trigger alone
    page.keyboard.press("Escape")
    assert section.locator("li").last.get_by_role("button", name="Draw it").is_visible()


def test_a_run_without_the_tag_is_one_click_away(page: Any, address: str) -> None:
    section = _open_report(page, address)
    section.locator("li").first.get_by_role("button", name="Train without it…").click()
    form = page.locator(".lt-run .lt-sweep")
    form.wait_for()
    assert [field.input_value() for field in form.locator("input").all()] == ["leave_out_tags", "hat"]
    _shot(page, "tags-repeat")
