"""The Dataset panel in a real browser, with its own server, as these tests change images."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

from PIL import Image

from tests.stand_ins.ui import write_images
from tests.ui.test_browser import (
    WITHOUT_TOOLTIP,
    address,
    fill,
    open_captions,
    open_tab,
    page,
    pytestmark,
    show,
    type_caption,
)

__all__ = ["address", "page", "pytestmark"]

REDRAWN = """before => [...document.querySelectorAll("[data-number]")].some(
    (place) => place.dataset.number !== before && place.querySelector(".lt-gallery"))"""


def test_images_can_be_cropped_and_upscaled_and_both_can_be_undone(page: Any, address: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 2, size=(300, 100))
    before = (folder / "000.png").read_bytes()
    open_tab(page, address)
    show(page, "Train")  # the tiny model's own resolution is so small that these images are large enough for it
    page.locator("#lora_train_advanced").get_by_text("Advanced", exact=True).click()
    fill(page, "max_bucket", "1024")
    fill(page, "resolution", "512")
    show(page, "Dataset")
    box = page.locator("[data-lt='concepts'] input").first
    box.fill(str(folder))
    box.blur()
    page.click("#lora_train_scan")
    wide = page.locator(".lt-gallery figure", has_text="zkw, image 0").first
    wide.hover()
    wide.locator(".lt-k-open").click()
    assert "Estimated memory" in page.locator(".lt-requirements").inner_text()
    page.locator(".lt-k-message", has_text="300 × 100").wait_for()
    page.locator(".lt-k-zoom").press("ArrowRight")
    page.wait_for_function("document.querySelector('.lt-k-stage img').complete")  # its size moves what is below
    page.locator(".lt-k-stage").click(position={"x": 2, "y": 2})  # waits until it stays where it is
    assert page.locator(".lt-k-frame").evaluate("frame => [frame.style.left, frame.style.top]") == ["0%", "0%"]
    page.click(".lt-k-write")
    page.locator(".lt-message", has_text="cropped to").wait_for()
    with Image.open(folder / "000.png") as cut:
        assert cut.width < 300
    page.click(".lt-d-check")
    page.locator(".lt-d-kind summary", has_text="tiny").click()
    assert page.evaluate(WITHOUT_TOOLTIP) == []
    page.click(".lt-d-upscale")
    page.locator(".lt-d-body .lt-verdict", has_text="2 files repaired").wait_for()
    with Image.open(folder / "001.png") as larger:
        assert larger.width > 300
    page.get_by_role("button", name="Undo", exact=True).click()
    page.locator(".lt-d-body .lt-verdict", has_text="restored").wait_for()
    wide.hover()
    wide.locator(".lt-k-open").click()
    page.locator(".lt-k-undo").wait_for()
    number = page.locator("[data-lt-scan]").get_attribute("data-lt-scan")
    page.click("#lora_train_scan")
    page.wait_for_function(REDRAWN, arg=number)
    page.click(".lt-k-undo")  # the editor stays open after a scan
    page.locator(".lt-message", has_text="undone").wait_for()
    assert (folder / "000.png").read_bytes() == before


_DROP = """([name, text]) => {
    const dropped = new DataTransfer();
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    dropped.items.add(new File([bytes], name));
    dropped.items.add(new File(["MZ"], "program.exe"));
    const card = document.querySelector(".lt-concept");
    card.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true }));
}"""


def test_a_folder_is_chosen_with_browse_and_images_are_dropped_into_it(page: Any, address: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set" / "cats", 2)
    open_tab(page, address)
    box = page.locator("[data-lt='concepts'] input").first
    box.fill(str(tmp_path / "set"))
    box.blur()
    page.wait_for_timeout(1500)  # the draft is saved
    page.get_by_role("button", name="Browse…").first.click()
    page.locator(".lt-browse-list .lt-hit", has_text="cats").click()
    page.locator(".lt-browse-path", has_text="2 images").wait_for()
    page.get_by_role("button", name="Use this folder").click()
    page.wait_for_function("end => document.querySelector('[data-lt=concepts] input').value.endsWith(end)", arg="cats")
    page.wait_for_timeout(1500)
    image = io.BytesIO()
    Image.new("RGB", (96, 64), (5, 5, 5)).save(image, "PNG")
    page.evaluate(_DROP, ["dropped.png", base64.b64encode(image.getvalue()).decode()])
    page.locator(".lt-message", has_text="1 file uploaded").wait_for()
    assert "program.exe is not an image" in page.locator(".lt-message").inner_text()
    page.locator(".lt-concept", has_text="3 images").first.wait_for()
    assert (folder / "dropped.png").read_bytes() == image.getvalue()


def test_a_long_check_survives_a_reload_and_can_be_stopped(page: Any, address: str, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    Image.new("L", (3000, 3000)).save(folder / "0.png")
    for n in range(1, 600):
        os.link(folder / "0.png", folder / f"{n}.png")
    open_tab(page, address)
    box = page.locator("[data-lt='concepts'] input").first
    box.fill(str(folder))
    box.blur()
    page.wait_for_timeout(1500)  # the draft is saved
    page.click(".lt-d-check")
    page.locator(".lt-d-line", has_text="of 600 images checked").wait_for()
    page.reload()
    page.locator(".lt-d-line", has_text="left").wait_for()
    page.click(".lt-d-stop")
    page.locator(".lt-d-body .lt-verdict", has_text="of 600 images were checked").wait_for()
    assert page.locator(".lt-d-work").is_hidden() and page.locator(".lt-d-check").is_enabled()


def tags_are(page: Any, expected: dict[str, str]) -> None:
    """Wait until the tag list has these tags and counts."""
    listed = """() => Object.fromEntries([...document.querySelectorAll('.lt-c-tags .lt-hit')]
        .map((hit) => [hit.querySelector('b').textContent, hit.querySelector('i').textContent]))"""
    page.wait_for_function(
        f"expected => JSON.stringify(Object.entries(({listed})()).sort()) === JSON.stringify(expected)",
        arg=sorted(map(list, expected.items())),
    )


def test_tag_list_and_filters_follow_a_single_edit(page: Any, address: str, tmp_path: Path) -> None:
    """(tag-list-after-one-edit) One typed caption changes the counts, and what the filter shows."""
    folder = write_images(tmp_path / "set", 3)
    open_tab(page, address)
    show(page, "Captions")
    open_captions(page, folder, 3)
    tags_are(page, {"zkw": "3", "image 0": "1", "image 1": "1", "image 2": "1"})
    type_caption(page, "zkw, sunset")
    page.locator(".lt-c-message", has_text="000.png saved").wait_for()
    tags_are(page, {"zkw": "3", "sunset": "1", "image 1": "1", "image 2": "1"})
    page.locator(".lt-c-tags .lt-hit", has_text="sunset").click()
    page.locator(".lt-c-count", has_text="1 of 3").wait_for()
    tags_are(page, {"zkw": "1", "sunset": "1"})
    type_caption(page, "zkw, dawn")  # the image no longer has the tag that the filter asks for
    page.locator(".lt-c-count", has_text="0 of 3").wait_for()
    tags_are(page, {})
    page.fill(".lt-c-filter-all_of", "dawn")
    page.locator(".lt-c-count", has_text="1 of 3").wait_for()
    tags_are(page, {"zkw": "1", "dawn": "1"})
