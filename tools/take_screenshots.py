"""Takes the screenshots in `docs/images/`: trains the demo in the stand-alone app and photographs every panel.

    python tools/take_screenshots.py [--out docs/images] [--epochs N]

Needs playwright, Pillow and Chromium on the PATH. The screenshots show folder names, so run it in a neutral folder.
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

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PANELS = ("Dataset", "Captions", "Train", "Monitor", "Results", "Tools")
SIZES = {"": (1400, 1000), "-narrow": (480, 900)}
_SERVE = (
    "import sys; from pathlib import Path; from lib_lora_train.ui.app import serve;"
    "serve(port=int(sys.argv[1]), home=Path(sys.argv[2]), open_browser=False)"
)
_MINUTE_MS = 60_000
_TALLEST_PX = 1700  # longer panels are cut off at the bottom
_COLOURS = 192


@contextlib.contextmanager
def run_app() -> Iterator[tuple[str, Path]]:
    """The address and the empty home of the app, which runs in its own process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        server = subprocess.Popen([sys.executable, "-c", _SERVE, str(port), home], cwd=ROOT)
        try:
            yield wait_for(f"http://127.0.0.1:{port}/", server), Path(home)
        finally:
            server.terminate()
            server.wait(20)


def wait_for(address: str, server: subprocess.Popen[bytes]) -> str:
    """The address, once the app answers."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}lora-train/v1/status", timeout=5):
                return address
        except OSError:
            time.sleep(0.5)
    raise SystemExit("The app did not start.")


def start_demo(page: Any, epochs: int) -> None:
    """Fill in the demo, scan its images and start training."""
    page.click("#lora_train_demo")
    page.wait_for_selector(".lt-gallery img")
    page.get_by_role("tab", name="Train", exact=True).click()
    if epochs:
        box = page.locator("#lora_train_epochs").locator("input").first
        box.fill(str(epochs))
        box.blur()
    page.click("#lora_train_start")
    page.locator(".lt-pill", has_text="Running").wait_for()


def take_screenshot(page: Any, panel: str, file: Path, *, home: Path) -> None:
    """Save a screenshot of one panel; `home` is the folder of the app."""
    tab = page.get_by_role("tab", name=panel, exact=True)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:  # on narrow screens gradio moves the last tabs to a menu
        page.locator("#lora_train_panels .overflow-menu > button").click()
        page.locator("#lora_train_panels .overflow-dropdown button", has_text=panel).click()
    page.wait_for_timeout(1500)
    fill_in(page, panel, home)
    page.screenshot(path=file, full_page=True)
    make_small(file)
    print(file)


def fill_in(page: Any, panel: str, home: Path) -> None:
    """Enter the demo's folder or file in panels that need one."""
    if panel == "Captions" and not page.locator(".lt-c-gallery img").count():
        folder = page.locator("input.lt-c-folder")
        if not folder.input_value():
            folder.fill(str(ROOT / "assets" / "demo" / "train"))
        page.click("button.lt-c-open")
        page.locator(".lt-c-gallery img").first.wait_for(timeout=_MINUTE_MS)
        page.locator(".lt-c-gallery img").first.click()
        page.wait_for_timeout(1500)
    if panel == "Tools":
        newest = max((home / "models" / "Lora").glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        page.locator(".lt-tools input").first.fill(str(newest))
        page.locator(".lt-tools button").first.click()
        page.wait_for_timeout(3000)


def make_small(file: Path) -> None:
    """Reduce the file to about a fifth, by fewer colours and a limited height."""
    with Image.open(file) as image:
        cut = image.convert("RGB").crop((0, 0, image.width, min(image.height, _TALLEST_PX)))
    cut.quantize(_COLOURS).save(file, optimize=True)


def main() -> None:
    """Take all screenshots: the Monitor during training, then every panel, light and dark, wide and narrow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of the run; 0: as in the demo")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with run_app() as (address, home), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(address)
        start_demo(page, options.epochs)
        page.locator("tbody th", has_text="Epoch 3").wait_for(timeout=20 * _MINUTE_MS)
        take_screenshot(page, "Monitor", options.out / "monitor-training-light.png", home=home)
        page.locator(".lt-pill", has_text="Finished").wait_for(timeout=30 * _MINUTE_MS)
        for theme in ("light", "dark"):
            for suffix, (width, height) in SIZES.items():
                page.set_viewport_size({"width": width, "height": height})
                page.goto(f"{address}?__theme={theme}")
                page.wait_for_selector("#lora_train_root .lt-pill")
                for panel in PANELS:
                    take_screenshot(page, panel, options.out / f"{panel.lower()}{suffix}-{theme}.png", home=home)
        browser.close()


if __name__ == "__main__":
    main()
