"""How responsive the Captions panel is with thousands of images: every action timed in a real browser.

    python benchmarks/tab_captions.py [--images 5000] [--folder FOLDER]

Creates the images (synthetic, 384 px, with captions of 3 to 27 tags) unless you give a folder of your own; edits there
are undone. Each line shows the action, the time until the page shows its result, and the server's part of it.
Needs playwright and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
_COLOURS = ["red", "blue", "green", "black", "white", "blonde", "silver", "dark", "pink", "brown"]
_THINGS = ["hair", "eyes", "dress", "hat", "sky", "shirt", "flower", "background", "ribbon", "boots"]
_WAIT_MS = 180_000


def make_images(folder: Path, number: int) -> None:
    """Write synthetic images with captions; every fiftieth has none."""
    folder.mkdir(parents=True)
    dice = random.Random(3)
    tags = [f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS]
    for n in range(number):
        image = Image.new("RGB", (384, 384), tuple(dice.randrange(256) for _ in range(3)))
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            left, top, size = dice.randrange(330), dice.randrange(330), dice.randrange(20, 160)
            draw.ellipse((left, top, left + size, top + size // 2), fill=tuple(dice.randrange(256) for _ in range(3)))
        image.save(folder / f"{n:05}.jpg", quality=85)
        if n % 50:
            caption = ", ".join(["zorp", *dice.sample(tags, dice.randrange(3, 28))])
            (folder / f"{n:05}.txt").write_text(caption, encoding="utf-8")


class Timed:
    """Times actions in the page, and the server's part of them."""

    def __init__(self, page: Any) -> None:
        self._page = page

    def __call__(self, what: str, do: Callable[[], object], shown: str) -> None:
        """Run an action and wait until the JavaScript expression `shown`, evaluated on every frame, is true."""
        self._page.evaluate("performance.clearResourceTimings()")
        began = time.perf_counter()
        do()
        self._page.wait_for_function(shown, timeout=_WAIT_MS, polling="raf")
        seconds = time.perf_counter() - began
        server = self._page.evaluate(
            "performance.getEntriesByType('resource').filter(e => e.name.includes('/page/'))"
            ".map(e => `${e.name.split('/').pop()} ${Math.round(e.duration)} ms`).join(', ')"
        )
        print(f"{what:<44} {seconds:6.2f} s   {server}", flush=True)


def _thumbnails(number: int) -> str:
    """Whether the page's first images are shown; those further down are fetched when they come into view."""
    return (
        "(images => images.length && images.every(one => one.complete && one.naturalWidth))"
        f"([...document.querySelectorAll('.lt-c-gallery img')].slice(0, {number}))"
    )


def _count(text: str) -> str:
    return f"document.querySelector('.lt-c-count').textContent.includes('{text}')"


def measure(page: Any, folder: Path, number: int) -> None:
    """Time opening, paging, filtering, editing all captions and undoing."""
    timed, whole = Timed(page), f"{number:,}"
    first = "document.querySelector('.lt-c-gallery figure').title = 'old'"
    page.fill(".lt-c-folder", str(folder))
    timed("open: captions and tags are shown", lambda: page.click("button.lt-c-open"), _count(f"{whole} of {whole}"))
    timed("open: thumbnails on the screen", lambda: None, _thumbnails(8))
    page.wait_for_timeout(4000)  # the tokenizer is loaded meanwhile
    for turn in ("Next page", "Last page", "First page"):
        page.evaluate(first)
        new = "document.querySelector('.lt-c-gallery figure').title !== 'old' && " + _thumbnails(8)
        timed(f"{turn.lower()}, with thumbnails", lambda turn=turn: page.click(f"[aria-label='{turn}']"), new)
    same = f"!{_count(f'{whole} of {whole}')}"
    for box, text in (
        ("all_of", "red hair"),
        ("any_of", "* sky"),
        ("none_of", "zorp"),
        ("text", "blue eyes"),
        ("most", "75"),
    ):
        label = f"filter {box.replace('_', ' ')}: {text} (0.35 s is waited)"
        timed(label, lambda box=box, text=text: page.fill(f".lt-c-filter-{box}", text), same)
        timed(
            "   and without it again",
            lambda box=box: page.fill(f".lt-c-filter-{box}", ""),
            _count(f"{whole} of {whole}"),
        )
    page.select_option(".lt-c-edit", "add")
    planned = "document.querySelector('.lt-c-preview').textContent.includes('would change')"
    timed("edit all: how many it would touch", lambda: page.fill(".lt-c-texts input", "forest at noon"), planned)
    done = "document.querySelector('.lt-c-message').textContent.includes(' changed')"
    timed("edit all: written", lambda: page.click(".lt-c-apply"), done)
    undone = "document.querySelector('.lt-c-message').textContent.includes('restored')"
    timed("edit all: undone", lambda: page.click(".lt-c-undo"), undone)
    page.click("summary:has-text('Advice')")
    timed("advice", lambda: None, "document.querySelector('.lt-c-advice').textContent.includes('stands out')")


def measure_dataset(page: Any, folder: Path) -> None:
    """Time the Dataset panel: read the folder, plan, show the first images."""
    box = page.locator("[data-lt='concepts'] input").first
    box.fill(str(folder))
    box.blur()
    page.wait_for_timeout(2500)
    shown = "document.querySelectorAll('[data-lt=images] .lt-gallery img').length > 0"
    Timed(page)("Dataset: look, plan and first images", lambda: page.click("#lora_train_look"), shown)


def serve(home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The app in a separate process, and its address once it responds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests" / "stand_ins" / "serve_tab.py"), str(port), str(home)]
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/lora-train/v1/status", timeout=5).close()
            return server, f"http://127.0.0.1:{port}/"
        except OSError:
            time.sleep(0.5)
    raise SystemExit("The app did not start.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--folder", type=Path, help="a folder of your own instead")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        folder = given.folder or Path(place) / "set"
        if not given.folder:
            make_images(folder, given.images)
        number = sum(file.suffix.lower() in (".jpg", ".png", ".webp") for file in folder.iterdir())
        server, address = serve(Path(place))
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.goto(address)
            page.wait_for_selector("[data-lt='restored']", state="attached", timeout=_WAIT_MS)
            page.get_by_role("tab", name="Captions", exact=True).click()
            measure(page, folder, number)
            page.get_by_role("tab", name="Dataset", exact=True).click()
            measure_dataset(page, folder)
            browser.close()
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
