"""Takes the pictures of the tab in `docs/images/`: trains the demo in the stand-alone app and looks at every panel.

    python tools/take_screenshots.py [--out docs/images] [--epochs 6]

Needs playwright and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PANELS = ("Dataset", "Captions", "Train", "Monitor", "Results", "Tools")
SIZES = {"": (1400, 1000), "-narrow": (480, 900)}
_SERVE = (
    "import sys; from pathlib import Path; from lib_lora_train.ui.app import serve;"
    "serve(port=int(sys.argv[1]), home=Path(sys.argv[2]), open_browser=False)"
)
_MINUTE_MS = 60_000


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The app's address; it runs in a process of its own with an empty home."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        server = subprocess.Popen([sys.executable, "-c", _SERVE, str(port), home], cwd=ROOT)
        try:
            yield wait_for(f"http://127.0.0.1:{port}/", server)
        finally:
            server.terminate()
            server.wait(20)


def wait_for(address: str, server: subprocess.Popen[bytes]) -> str:
    """The address, once it answers."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}lora-train/v1/status", timeout=5):
                return address
        except OSError:
            time.sleep(0.5)
    raise SystemExit("The app did not start.")


def start_demo(page: Any, epochs: int) -> None:
    """Fill in the demo, look at its pictures, start."""
    page.click("#lora_train_demo")
    page.wait_for_selector(".lt-gallery img")
    page.get_by_role("tab", name="Train", exact=True).click()
    if epochs:
        box = page.locator("#lora_train_epochs").locator("input").first
        box.fill(str(epochs))
        box.blur()
    page.click("#lora_train_start")
    page.locator(".lt-pill", has_text="Running").wait_for()


def take(page: Any, panel: str, file: Path) -> None:
    """One panel as a picture."""
    tab = page.get_by_role("tab", name=panel, exact=True)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:  # on a narrow screen gradio keeps the last tabs in a menu
        page.locator("#lora_train_panels .overflow-menu > button").click()
        page.locator("#lora_train_panels .overflow-dropdown button", has_text=panel).click()
    page.wait_for_timeout(1500)
    page.screenshot(path=file, full_page=True)
    print(file)


def main() -> None:
    """Take all pictures: the Monitor while it trains, then every panel, light and dark, wide and narrow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of the run; 0: the demo's own")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(address)
        start_demo(page, options.epochs)
        page.locator("tbody th", has_text="Epoch 3").wait_for(timeout=20 * _MINUTE_MS)
        take(page, "Monitor", options.out / "monitor-training-light.png")
        page.locator(".lt-pill", has_text="Finished").wait_for(timeout=30 * _MINUTE_MS)
        for theme in ("light", "dark"):
            for suffix, (width, height) in SIZES.items():
                page.set_viewport_size({"width": width, "height": height})
                page.goto(f"{address}?__theme={theme}")
                page.wait_for_selector("#lora_train_root .lt-pill")
                for panel in PANELS:
                    take(page, panel, options.out / f"{panel.lower()}{suffix}-{theme}.png")
        browser.close()


if __name__ == "__main__":
    main()
