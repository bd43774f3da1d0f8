"""Runs in a real browser, with its own server: the queue, two pages at once, the notification at the end."""

from __future__ import annotations

from typing import Any

from tests.ui.test_browser import _RUN_MS, address, fill, fill_in_the_demo, open_tab, page, pill, pytestmark, show

__all__ = ["address", "page", "pytestmark"]

_CATCH_NOTIFICATIONS = """() => {
    const Real = window.Notification;
    window.caught = [];
    window.Notification = class extends Real {
        constructor(title, options) {
            super(title, options);
            window.caught.push([title, options.body]);
        }
    };
}"""


def queued(page: Any, names: list[str]) -> None:
    """Wait until the queue has this order."""
    page.wait_for_function(
        """names => JSON.stringify([...document.querySelectorAll('.lt-queue li')]
            .map((line) => names.find((name) => line.textContent.includes(name)))) === JSON.stringify(names)""",
        arg=names,
    )


def move(page: Any, name: str, arrow: str) -> None:
    page.locator(".lt-queue li", has_text=name).get_by_role("button", name=arrow, exact=True).click()


def test_the_queue_can_be_reordered_and_other_pages_follow(page: Any, address: str) -> None:
    open_tab(page, address)
    page.locator(".lt-headline", has_text="Choose images").wait_for()
    fill_in_the_demo(page)
    page.locator(".lt-headline", has_text="The plan is ready").wait_for()
    show(page, "Train")
    for name in ("apple", "birch", "cedar"):
        fill(page, "output_name", name)
        page.click("#lora_train_enqueue")
        page.locator(".lt-queue", has_text=name).wait_for()
    queued(page, ["apple", "birch", "cedar"])
    assert page.locator(".lt-queue li").first.get_by_role("button", name="↑", exact=True).is_disabled()
    move(page, "cedar", "↑")
    queued(page, ["apple", "cedar", "birch"])
    move(page, "apple", "↓")
    queued(page, ["cedar", "apple", "birch"])
    other = page.context.new_page()
    open_tab(other, address)
    show(other, "Train")
    queued(other, ["cedar", "apple", "birch"])
    move(other, "birch", "↑")
    queued(other, ["cedar", "birch", "apple"])
    queued(page, ["cedar", "birch", "apple"])  # without a click on the first page
    for name in ("cedar", "birch", "apple"):
        move(page, name, "×")
        page.locator(".lt-queue", has_text=name).wait_for(state="detached")
    other.locator(".lt-queue").wait_for(state="detached")


def test_the_browser_notifies_when_a_run_ends_and_both_pages_show_it(page: Any, address: str) -> None:
    page.context.grant_permissions(["notifications"], origin=address.rstrip("/"))
    page.add_init_script(f"({_CATCH_NOTIFICATIONS})()")
    open_tab(page, address)
    fill_in_the_demo(page)
    show(page, "Train")
    fill(page, "output_name", "notified")
    page.click("#lora_train_start")
    pill(page, "Running")
    page.get_by_role("button", name="Notify me when done").click()
    page.get_by_role("button", name="Notification on").wait_for()
    page.reload()
    pill(page, "Running")
    show(page, "Monitor")
    page.get_by_role("button", name="Notification on").wait_for()
    other = page.context.new_page()
    open_tab(other, address)
    pill(other, "Running")
    page.wait_for_selector(".lt-chart .lt-smooth", timeout=_RUN_MS)
    other.click("#lora_train_stop")
    pill(page, "Stopped", timeout_ms=_RUN_MS)
    pill(other, "Stopped")
    page.wait_for_function("window.caught.length === 1")
    title, body = page.evaluate("window.caught[0]")
    assert title == "LoRA Train" and body
