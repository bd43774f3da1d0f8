"""The tab in a real browser: the demo is trained, watched, paused, reloaded and stopped.

Set `LORA_TRAIN_BROWSER_PYTHON` to serve the page with another Python, such as a webui's, to test its gradio version.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.adapters.inject import inject
from lib_lora_train.adapters.registry import AdapterSpec
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.hosts.standalone import StandaloneHost
from tests.paths import KOHYA_FILES, ROOT
from tests.stand_ins.tiny_onnx import write_wd14
from tests.stand_ins.ui import write_images
from tests.ui.conftest import CHROMIUM

SERVING_PYTHON = os.environ.get("LORA_TRAIN_BROWSER_PYTHON", sys.executable)
_START_SECONDS = 300  # PyTorch and gradio are imported on a busy machine with two cores
_SHOW_MS = 90_000  # one poll of the page is a second; the rest is for the same machine
_RUN_MS = 300_000  # model loaded, images encoded, first samples drawn

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


WITHOUT_TOOLTIP = """() => {
    const named = (one) => one && one.id !== 'lora_train_root' && (one.title ? true : named(one.parentElement));
    return [...document.querySelectorAll('#lora_train_root :is(button, input, select, textarea, summary)')]
        .filter((one) => one.offsetParent !== null && !one.closest('.overflow-menu, .visually-hidden') && !named(one))
        .map((one) => one.outerHTML.slice(0, 200));
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the stand-alone app, running in its own process with an empty home."""
    with serving(tmp_path_factory.mktemp("home")) as address:
        yield address


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[str]:
    """Inside, the app runs in its own process at this address, with more arguments for `serve_tab.py`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [SERVING_PYTHON, str(ROOT / "tests" / "stand_ins" / "serve_tab.py"), str(port), str(home), *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        try:
            yield wait_for(f"http://127.0.0.1:{port}/", server, home / "server.log")
        finally:
            server.terminate()
            server.wait(20)


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> str:
    """The address, once it answers."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}lora-train/v1/status", timeout=5):
                return address
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"the app did not start:\n{log.read_text(encoding='utf-8', errors='replace')}")


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty page. JavaScript errors fail the test."""
    thrown: list[str] = []
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(_SHOW_MS)
    context.on("weberror", lambda error: thrown.append(str(error.error)))  # of every page
    yield context.new_page()
    context.close()
    assert thrown == []


def open_tab(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector("#lora_train_root .lt-pill")
    page.wait_for_selector("[data-lt='restored']", state="attached")  # the form is filled in


def fill_in_the_demo(page: Any) -> None:
    """Press the button and wait for the new scan. Until then, anything typed would be replaced."""
    scanned = "Number(document.querySelector('[data-lt-scan]')?.dataset.ltScan || 0)"
    before = page.evaluate(scanned)
    page.click("#lora_train_demo")
    page.wait_for_function(f"before => {scanned} > before", arg=before)
    page.wait_for_selector(".lt-gallery img")


def show(page: Any, panel: str) -> None:
    """Open a panel. Gradio 3 has plain buttons for tabs; newer ones move some to a menu on narrow screens."""
    tab = page.get_by_role("tab", name=panel, exact=True)
    button = page.locator("#lora_train_panels > .tab-nav > button", has_text=panel)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    elif button.count():
        button.first.click()
    else:
        page.locator("#lora_train_panels .overflow-menu > button").click()
        page.locator("#lora_train_panels .overflow-dropdown button", has_text=panel).click()


def pill(page: Any, text: str, *, timeout_ms: int = _SHOW_MS) -> None:
    """Wait until the strip shows this state."""
    page.locator(".lt-pill", has_text=text).wait_for(timeout=timeout_ms)


def status(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}lora-train/v1/status?since=0&after=0", timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def fill(page: Any, field: str, text: str) -> None:
    box = page.locator(f"#lora_train_{field}").locator("input, textarea").first
    box.fill(text)
    box.blur()


def value(page: Any, field: str) -> str:
    return str(page.locator(f"#lora_train_{field}").locator("input, textarea").first.input_value())


def test_a_form_without_images_has_an_error_and_does_not_start(page: Any, address: str) -> None:
    open_tab(page, address)
    show(page, "Train")
    page.click("#lora_train_start")
    page.wait_for_selector("#lora_train_form_check .lt-problems .lt-error")
    assert status(address)["run"] is None


def test_all_invalid_fields_are_marked(page: Any, address: str) -> None:
    open_tab(page, address)
    fill_in_the_demo(page)
    show(page, "Train")
    fill(page, "rank", "0")
    fill(page, "learning_rate", "much")
    page.wait_for_selector("#lora_train_rank[data-lt-problem='lt-error']")  # saved and checked without a click
    page.wait_for_selector("#lora_train_learning_rate[data-lt-problem='lt-error']")
    page.click("#lora_train_start")
    page.wait_for_timeout(500)
    assert status(address)["run"] is None


def test_text_typed_while_the_page_loads_is_not_overwritten(page: Any, address: str) -> None:
    page.goto(address)
    page.locator("#lora_train_concepts_1_trigger input").click()  # waits until the form is unlocked
    page.keyboard.type("typed at once")
    page.wait_for_timeout(2000)
    assert page.locator("#lora_train_concepts_1_trigger input").input_value().endswith("typed at once")


def test_concepts_can_be_added_balanced_and_removed(page: Any, address: str, tmp_path: Path) -> None:
    second = write_images(tmp_path / "second", 4)
    open_tab(page, address)
    fill_in_the_demo(page)
    page.get_by_role("button", name="+ Concept").click()
    page.locator("#lora_train_concepts_3_folder input").fill(str(second))
    page.locator("#lora_train_concepts_3_trigger input").fill("zkw")
    page.click("#lora_train_scan")
    page.locator(".lt-concept").nth(2).filter(has_text="4 images").wait_for()
    page.click("#lora_train_balance")
    page.wait_for_function("document.querySelector('#lora_train_concepts_3_repeats input').value === '25'")
    page.locator(".lt-concept").nth(2).get_by_role("button", name="Remove").click()
    page.wait_for_timeout(2000)  # the draft is saved
    open_tab(page, address)
    page.wait_for_selector("#lora_train_concepts_2_folder")
    assert page.locator(".lt-concept").count() == 2
    assert page.locator("#lora_train_concepts_2_is_regularisation input").is_checked()


def test_a_quick_fix_solves_its_warning(page: Any, address: str) -> None:
    open_tab(page, address)
    fill_in_the_demo(page)
    show(page, "Train")
    fill(page, "resolution", "100")
    page.locator("[data-lt-fix]", has_text="Set resolution to").first.click()
    page.wait_for_function("document.querySelector('#lora_train_resolution input').value === '64'")
    page.locator("#lora_train_resolution[data-lt-problem]").wait_for(state="detached")


def test_a_setting_is_found_by_search_and_marked_when_it_differs_from_the_preset(page: Any, address: str) -> None:
    open_tab(page, address)
    fill_in_the_demo(page)
    show(page, "Train")
    page.wait_for_function(
        "document.querySelector('#lora_train_output_name input, #lora_train_output_name textarea').value === 'zorp'"
    )
    fill(page, "preset_name", "of the test")
    page.click("#lora_train_save_preset")
    page.locator("#lora_train_source_message", has_text="Preset of the test saved").first.wait_for()
    page.fill("#lora_train_search_input", "lr_warmup_steps")  # kohya's name, of a folded tier
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.closest('#lora_train_warmup') !== null")
    fill(page, "warmup", "0.07")
    page.wait_for_selector("#lora_train_warmup[data-lt-changed]")
    changed = page.locator(".lt-search button", has_text="1 changed from of the test")
    changed.click()
    page.locator(".lt-search ~ .lt-hits .lt-hit", has_text=" instead of ").wait_for()
    changed.click()


def test_captions_are_filtered_edited_in_bulk_and_undone(page: Any, address: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 60)
    open_tab(page, address)
    page.wait_for_selector("#lora_train_concepts_1_folder")
    show(page, "Captions")
    page.fill(".lt-c-folder", str(folder))
    page.click(".lt-c-open")
    page.locator(".lt-c-count", has_text="60 of 60").wait_for(timeout=_RUN_MS)
    page.fill(".lt-c-filter-text", "image 1")
    page.locator(".lt-c-count", has_text="11 of 60").wait_for()
    page.select_option(".lt-c-edit", "add")
    page.select_option(".lt-c-scope", "filtered")
    page.fill(".lt-c-texts input", "forest")
    page.locator(".lt-c-preview", has_text="11 of 11 captions would change").wait_for()
    page.click(".lt-c-apply")
    page.locator(".lt-c-message", has_text="11 of 11 captions changed").wait_for()
    assert (folder / "017.txt").read_text(encoding="utf-8") == "zkw, image 17, forest\n"
    page.click(".lt-c-undo")
    page.locator(".lt-c-message", has_text="11 captions restored").wait_for()
    assert (folder / "017.txt").read_text(encoding="utf-8") == "zkw, image 17"
    page.locator(".lt-c-gallery .lt-thumb").first.click()
    page.keyboard.press("End")
    page.keyboard.type(", zkw mo")
    page.keyboard.press("Alt+ArrowRight")  # saves it and opens the next one
    page.locator(".lt-c-message", has_text="001.png saved").wait_for()
    assert (folder / "001.txt").read_text(encoding="utf-8") == "zkw, image 1, zkw mo\n"
    page.locator(".lt-c-editor", has_text="010.png").wait_for()
    page.get_by_text("Advice: tags that compete").click()
    topic = page.locator(".lt-c-topic", has_text="60 captions: fewer than 5 tags")
    topic.get_by_role("button", name="Select").click()  # also those hidden by the filter
    page.locator(".lt-c-count", has_text="60 selected").wait_for()
    assert topic.get_attribute("open") is None and not topic.locator("li").first.is_visible()


def test_the_caption_editor_follows_bulk_edits(page: Any, address: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 3)
    open_tab(page, address)
    show(page, "Captions")
    page.fill(".lt-c-folder", str(folder))
    page.click(".lt-c-open")
    page.locator(".lt-c-count", has_text="3 of 3").wait_for(timeout=_RUN_MS)
    page.locator(".lt-c-gallery .lt-thumb").first.click()
    page.select_option(".lt-c-edit", "add")
    page.fill(".lt-c-texts input", "forest")
    page.click(".lt-c-apply")
    page.locator(".lt-c-message", has_text="3 of 3 captions changed").wait_for()
    assert page.locator(".lt-c-editor textarea").input_value() == "zkw, image 0, forest"
    page.click(".lt-c-undo")
    page.locator(".lt-c-message", has_text="restored").wait_for()
    assert page.locator(".lt-c-editor textarea").input_value() == "zkw, image 0"


def open_captions(page: Any, folder: Path, images: int) -> None:
    page.fill(".lt-c-folder", str(folder))
    page.click(".lt-c-open")
    page.locator(".lt-c-count", has_text=f"{images} of {images}").wait_for(timeout=_RUN_MS)


def type_caption(page: Any, text: str) -> None:
    """Type into the caption of the first image, and leave the box."""
    page.locator(".lt-c-gallery .lt-thumb").first.click()
    page.fill(".lt-c-editor textarea", text)
    page.locator(".lt-c-editor textarea").blur()


def test_captions_of_two_pages_stay_in_their_folders(page: Any, address: str, tmp_path: Path) -> None:
    first, second = write_images(tmp_path / "first", 3), write_images(tmp_path / "second", 2)
    open_tab(page, address)
    show(page, "Captions")
    open_captions(page, first, 3)
    other = page.context.new_page()
    open_tab(other, address)
    show(other, "Captions")
    open_captions(other, second, 2)
    type_caption(page, "typed on the first page")
    page.locator(".lt-c-message", has_text="000.png saved").wait_for()
    page.locator(".lt-c-tags", has_text="typed on the first page").wait_for()  # the counts follow
    assert (first / "000.txt").read_text(encoding="utf-8") == "typed on the first page\n"
    assert (second / "000.txt").read_text(encoding="utf-8") == "zkw, image 0"
    page.fill(".lt-c-folder", str(tmp_path / "none"))
    page.keyboard.press("Enter")
    page.locator(".lt-c-message", has_text="cannot be read").wait_for()
    assert not page.locator(".lt-c-gallery").is_visible(), "nothing is left to edit"
    other.close()


SWALLOWING = """() => [...document.querySelectorAll('#lora_train_root :is(input, textarea)')]
    .filter((box) => !box.dispatchEvent(new KeyboardEvent('keydown', { key: 'x', bubbles: true, cancelable: true })))
    .map((box) => box.outerHTML.slice(0, 200))"""


def test_every_box_takes_typed_letters(page: Any, address: str, tmp_path: Path) -> None:
    open_tab(page, address)
    for panel in ("Dataset", "Train", "Monitor", "Results", "Tools", "Captions"):
        show(page, panel)
        if panel == "Captions":
            open_captions(page, write_images(tmp_path / "set", 1), 1)
            type_caption(page, "typed")
        assert page.evaluate(SWALLOWING) == [], panel


def test_a_folder_that_is_being_typed_is_not_replaced_by_the_suggested_one(page: Any, address: str) -> None:
    answers: list[Any] = []
    page.route("**/page/captions-folders", lambda route: answers.append(route))  # held back until the box is in use
    open_tab(page, address)
    fill_in_the_demo(page)
    show(page, "Captions")
    page.click(".lt-c-folder")
    while not answers:
        page.wait_for_timeout(50)
    answers[0].continue_()
    page.wait_for_selector(".lt-c-folders option", state="attached")  # the answer is here
    page.keyboard.type("/mine")
    assert page.input_value(".lt-c-folder") == "/mine"
    page.evaluate("document.querySelector('[data-lt=captions]').replaceChildren()")  # as gradio rebuilds it
    page.wait_for_selector(".lt-c-folder")
    assert page.input_value(".lt-c-folder") == "/mine"


def test_a_chosen_tagger_stays_when_its_card_is_closed_and_opened(page: Any, address: str, tmp_path: Path) -> None:
    def of_a_webui(route: Any) -> None:
        response = route.fetch()
        options = response.json()
        options["taggers"].append({"name": "DeepBooru", "help": ""})
        route.fulfill(response=response, json=options)

    page.route("**/page/tagging-options", of_a_webui)
    open_tab(page, address)
    show(page, "Captions")
    open_captions(page, write_images(tmp_path / "set", 1), 1)
    page.click(".lt-auto summary")
    page.select_option(".lt-a-tagger", "DeepBooru")
    page.click(".lt-auto summary")
    page.evaluate("document.querySelector('.lt-a-note').textContent = ''")
    page.click(".lt-auto summary")
    page.wait_for_function("document.querySelector('.lt-a-note').textContent")  # the options were read again
    assert page.input_value(".lt-a-tagger") == "DeepBooru"


def test_typed_captions_are_kept_when_their_save_is_refused(page: Any, address: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 3)
    file = folder / "000.txt"
    open_tab(page, address)
    show(page, "Captions")
    open_captions(page, folder, 3)
    file.write_text("of another program", encoding="utf-8")
    type_caption(page, "mine")
    refused = page.locator(".lt-c-editor .lt-c-refused")
    refused.get_by_text("The file's: of another program").wait_for()
    assert page.locator(".lt-c-editor textarea").input_value() == "mine"
    page.locator(".lt-c-gallery .lt-thumb").nth(1).click()  # kept while another image is edited
    page.locator(".lt-c-unsaved", has_text="mine").get_by_role("button", name="Save mine").click()
    page.locator(".lt-c-message", has_text="000.png saved").wait_for()
    assert file.read_text(encoding="utf-8") == "mine\n"
    page.locator(".lt-c-gallery figcaption", has_text="mine").wait_for()
    page.locator(".lt-c-gallery .lt-thumb").first.click()
    file.write_text("of another program again", encoding="utf-8")
    type_caption(page, "mine again")
    refused.get_by_role("button", name="Use the file's").click()
    page.wait_for_function("document.querySelector('.lt-c-editor textarea').value === 'of another program again'")
    assert page.locator(".lt-c-unsaved-one").count() == 0
    assert file.read_text(encoding="utf-8") == "of another program again"


def test_tags_are_completed_from_the_folder_and_from_a_list(page: Any, address: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", 3)
    lines = 'imaginary_(book),0,90000,"imagbook"\nlong_hair,0,4000000,\n'
    (tmp_path / "tags.csv").write_text(lines, encoding="utf-8")
    open_tab(page, address)
    show(page, "Captions")
    page.fill(".lt-c-folder", str(folder))
    page.click(".lt-c-open")
    page.locator(".lt-c-count", has_text="3 of 3").wait_for(timeout=_RUN_MS)
    page.fill(".lt-c-list input", str(tmp_path / "tags.csv"))
    page.keyboard.press("Enter")
    page.locator(".lt-c-list-message", has_text="2 tags, 1 alias").wait_for()
    page.locator(".lt-c-gallery .lt-thumb").first.click()
    page.keyboard.press("End")
    page.keyboard.type(", imagb")
    page.locator(".lt-complete button", has_text="imaginary (book)").wait_for()
    page.keyboard.press("Tab")
    area = page.locator(".lt-c-editor textarea")
    assert area.input_value() == "zkw, image 0, imaginary (book)"
    page.keyboard.type(", imag")
    page.locator(".lt-complete button").nth(2).wait_for()  # three of the folder come before one of the list
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert area.input_value() == "zkw, image 0, imaginary (book), image 1"
    page.keyboard.type(", lo")
    page.locator(".lt-complete").wait_for()
    page.keyboard.press("Escape")
    assert page.locator(".lt-complete").count() == 0
    page.fill(".lt-c-filter-all_of", "")
    page.locator(".lt-c-filter-all_of").press_sequentially("image 2")
    page.locator(".lt-c-count", has_text="1 of 3").wait_for()


def test_images_are_tagged_with_wd14_and_a_broken_image_is_skipped(page: Any, address: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_images(tmp_path / "set", 6)
    (folder / "002.txt").unlink()
    (folder / "004.txt").unlink()
    (folder / "004.png").write_bytes(b"no image")
    write_wd14(tmp_path / "tagger", [("long_hair", 0), ("saber_(fate)", 4), ("safe", 9)])
    open_tab(page, address)
    show(page, "Captions")
    page.fill(".lt-c-folder", str(folder))
    page.click(".lt-c-open")
    page.locator(".lt-c-count", has_text="6 of 6").wait_for(timeout=_RUN_MS)
    page.locator(".lt-auto summary").click()
    page.locator(".lt-a-note", has_text="DeepBooru and BLIP are not available here (stand-alone)").wait_for()
    page.locator(".lt-a-message", has_text="2 of 6 images would be tagged; 4 already have captions.").wait_for()
    page.click(".lt-a-start")
    page.locator(".lt-a-state", has_text="Enter the folder of the WD14 tagger").wait_for()
    page.fill(".lt-a-model input", str(tmp_path / "tagger"))
    page.fill(".lt-a-general input", "0")
    page.fill(".lt-a-character input", "0")
    page.fill(".lt-a-trigger input", "zkw")
    page.fill(".lt-a-exclude input", "saber*")
    page.click(".lt-a-start")
    page.locator(".lt-a-state", has_text="Done. 1 caption written.").wait_for()
    page.locator(".lt-a-skipped", has_text="004.png skipped").wait_for()
    page.locator(".lt-c-gallery figcaption", has_text="zkw, long hair").wait_for()
    assert (folder / "002.txt").read_text(encoding="utf-8") == "zkw, long hair\n"
    page.click(".lt-c-undo")
    page.locator(".lt-c-message", has_text="1 caption restored").wait_for()
    assert not (folder / "002.txt").exists()


def test_imported_settings_and_presets_fill_the_form(page: Any, address: str) -> None:
    open_tab(page, address)
    show(page, "Train")
    fill(page, "import_file", str(KOHYA_FILES / "gui.json"))
    page.click("#lora_train_import")
    page.locator("#lora_train_source_message", has_text="some_future_option = 3 is").first.wait_for()
    assert value(page, "output_name") == "fox"
    fill(page, "alpha", "3")
    page.click("#lora_train_apply_preset")
    page.locator("#lora_train_source_message", has_text="Preset Character applied").first.wait_for()
    assert (value(page, "output_name"), value(page, "alpha")) == ("fox", "8")
    open_tab(page, address)
    show(page, "Train")
    assert value(page, "output_name") == "fox", "applied settings are saved"


def test_the_steady_loss_is_inside_the_chart_however_many_steps_there_are(page: Any, address: str) -> None:
    """Outliers among many steps are cut off at the top; the loss without LoRA, the highest of few, is none."""
    open_tab(page, address)
    inside = page.evaluate("""() => {
        const container = document.createElement("div");
        container.style.width = "600px";
        document.body.append(container);
        const loss = Array.from({ length: 200 }, (_, n) => [n + 1, n === 50 ? 9 : 0.1]);
        const measured = (epoch, value) => ({ kind: "Measured", epoch, values: { steady_loss: value } });
        const events = [measured(0, 0.4), { kind: "EpochDone", epoch: 1, step: 200 }, measured(1, 0.2)];
        window.loraTrain.drawChart(container, { id: "made", loss, events });
        const points = container.querySelectorAll(".lt-plot circle:has(title)");
        return [...points].map((point) => Number(point.getAttribute("cy")));
    }""")
    without_lora, after = inside
    assert 0 < without_lora < 50 < after  # px from the top, in use although a step's loss was 9


def test_the_files_of_a_finished_run_begin_with_its_advice(page: Any, address: str) -> None:
    """The named epoch has its buttons at the recommended strength, and a mark in the table; a newer advice counts."""
    open_tab(page, address)
    page.evaluate("""() => {
        const container = document.createElement("div");
        container.id = "made";
        document.querySelector("#lora_train_root").append(container);
        const path = (epoch) => `/lora/zok-${epoch}.safetensors`;
        const written = (epoch) => ({ kind: "LoraWritten", path: path(epoch), epoch, step: 10 * epoch });
        const advice = { kind: "Advised", strength: 1.25, is_sure: true, reasons: ["A reason."], remedies: [] };
        const advised = (epoch) => ({ ...advice, epoch });
        const events = [written(1), written(2), advised(1), advised(2)];
        window.loraTrain.drawFiles(container, { id: "made", loss: [], events, status: {} });
    }""")
    made = page.locator("#made")
    assert made.locator(".lt-advice h4").inner_text() == "Use epoch 2 at strength 1.25"
    assert made.locator(".lt-advice li").all_inner_texts() == ["A reason."]
    assert "<lora:zok-2:1.25>" in made.locator(".lt-advice button").first.get_attribute("title")
    assert made.locator("tr", has_text="best").locator(".lt-file").all_inner_texts() == ["zok-2.safetensors"]


def test_the_demo_can_be_trained_in_the_tab(page: Any, address: str, tmp_path: Path) -> None:
    open_tab(page, address)
    fill_in_the_demo(page)
    assert page.locator(".lt-gallery figcaption", has_text="zorp").count() > 0
    show(page, "Train")
    page.locator("#lora_train_advanced").get_by_text("Advanced", exact=True).click()
    fill(page, "sample_steps", "2")
    fill(page, "epochs", "50")
    fill(page, "output_name", "from-the-tab")
    page.click("#lora_train_start")
    pill(page, "Running")
    page.locator("#lora_train_monitor_panel").first.wait_for()
    page.wait_for_selector(".lt-chart .lt-smooth", timeout=_RUN_MS)
    page.wait_for_selector("#lora_train_samples .lt-thumb img")

    page.reload()  # the run is still shown with its curve, and the form is unchanged
    pill(page, "Running")
    show(page, "Train")
    assert page.locator("#lora_train_output_name").locator("input, textarea").first.input_value() == "from-the-tab"
    show(page, "Monitor")
    page.wait_for_selector(".lt-chart .lt-smooth")

    page.click("#lora_train_pause")
    pill(page, "Paused")
    step = status(address)["step"]
    page.wait_for_timeout(1500)
    assert status(address)["step"] == step
    show(page, "Results")
    page.locator(".lt-run", has_text="from-the-tab").locator(".lt-tag", has_text="paused").wait_for()
    show(page, "Monitor")
    page.click("#lora_train_save")  # also works while paused
    page.locator("#lora_train_log").get_by_text("from-the-tab-step").first.wait_for(state="attached")
    page.click("#lora_train_resume")
    pill(page, "Running")
    page.click(".lt-use-now")
    page.locator(".lt-use-now", has_text="Copied").wait_for(timeout=_RUN_MS)  # without txt2img the prompt is copied
    show(page, "Train")
    page.click("#lora_train_enqueue")
    page.locator(".lt-queue", has_text="from-the-tab").wait_for()
    page.locator(".lt-queue").get_by_role("button", name="×").click()
    page.locator(".lt-queue").wait_for(state="detached")
    show(page, "Monitor")
    end = time.monotonic() + 30
    while status(address)["step"] <= step and time.monotonic() < end:
        time.sleep(0.2)
    assert status(address)["step"] > step

    page.click("#lora_train_stop")
    pill(page, "Stopped", timeout_ms=_RUN_MS)
    page.screenshot(path=tmp_path / "monitor.png", full_page=True)
    show(page, "Results")
    page.wait_for_selector("#lora_train_files td.lt-file")
    page.wait_for_selector("#lora_train_grid img")
    page.click("#lora_train_grid button")
    page.wait_for_selector("#lora_train_view img")
    page.keyboard.press("Escape")
    assert page.locator("#lora_train_view").count() == 0
    page.screenshot(path=tmp_path / "results.png", full_page=True)


def test_a_file_that_forge_ignores_can_be_converted_with_one_click(page: Any, address: str, tmp_path: Path) -> None:
    """Rows of (IA)³ files have two buttons for converting, rows of plain LoRAs none."""
    model = StandaloneHost(None, None, tmp_path, device="cpu").load_model(TrainConfig())
    adapter = inject(model, AdapterSpec("ia3", targets="attention", text_encoder=False), seed=1)
    for (parameter,) in adapter.groups.values():
        parameter.data.fill_(0.05)
    path = tmp_path / "tiny.safetensors"
    write_adapter(path, adapter.state(), metadata={}, precision="fp32")
    open_tab(page, address)
    page.wait_for_function("Boolean(window.loraTrain && window.loraTrain.drawFiles)")
    draw = """([id, convert_to, path]) => {
        const place = document.createElement("div");
        place.id = id;
        document.body.append(place);
        const events = [{ kind: "LoraWritten", path, epoch: 1, step: 2 }];
        window.loraTrain.drawFiles(place, { id, events, status: { triggers: [], convert_to } });
    }"""
    page.evaluate(draw, ["plain", [], str(path)])
    assert page.locator("#plain button", has_text="Convert to").count() == 0
    page.evaluate(draw, ["ignored", ["diff", "lora"], str(path)])
    page.locator("#ignored button", has_text="Convert to LoRA").dispatch_event("click")
    page.wait_for_selector("#ignored .lt-good", state="attached", timeout=_SHOW_MS * 6)
    message = page.locator("#ignored .lt-good").inner_text()
    assert "tiny-rank16.safetensors" in message and "% of the update was lost" in message
    written = read_adapter(tmp_path / "tiny-rank16.safetensors").state
    assert all(tensor.shape[0] == 16 for key, tensor in written.items() if key.endswith("lora_down.weight"))


def test_arrow_keys_move_through_enlarged_samples(page: Any, address: str) -> None:
    open_tab(page, address)
    show(page, "Monitor")
    page.locator("#lora_train_samples .lt-thumb").first.click()
    large = page.locator("#lora_train_view .lt-view-image")
    first = large.get_attribute("src")
    page.keyboard.press("ArrowRight")
    assert large.get_attribute("src") != first
    page.keyboard.press("ArrowLeft")
    assert large.get_attribute("src") == first


def test_a_past_run_can_be_reused_renamed_and_deleted_after_confirmation(page: Any, address: str) -> None:
    open_tab(page, address)
    show(page, "Results")
    run = page.locator(".lt-run", has_text="from-the-tab").first
    rename = run.get_by_role("button", name="Rename…").first
    run.locator("summary").first.click()
    page.wait_for_timeout(3000)
    if not rename.is_visible():  # the newest run is opened by itself, so that the click has closed it
        run.locator("summary").first.click()
    rename.wait_for()
    assert page.evaluate(WITHOUT_TOOLTIP) == []
    rename.click()
    run.get_by_role("textbox", name="New name").fill("my own name")
    page.keyboard.press("Enter")
    page.locator(".lt-run td.lt-file", has_text="my own name.safetensors").wait_for()
    run.get_by_role("button", name="Train again with these settings").click()
    show(page, "Train")
    page.locator("#lora_train_message", has_text="replaced yours").first.wait_for()
    assert value(page, "output_name") == "from-the-tab"
    show(page, "Results")
    run.get_by_role("button", name="Delete…").click()
    run.locator(".lt-confirm", has_text="LoRA files with their cards").wait_for()
    run.get_by_role("button", name="Cancel").click()
    assert page.locator(".lt-run", has_text="from-the-tab").count() == 1
    run.get_by_role("button", name="Delete…").click()
    run.get_by_role("button", name="Delete everything").click()
    page.locator(".lt-run", has_text="from-the-tab").wait_for(state="detached")


def test_a_lora_is_resized_in_tools_and_a_rule_shows_its_own_field(page: Any, address: str, tmp_path: Path) -> None:
    shape = {"lora_up": (32, 4, 1, 1), "lora_down": (4, 32, 1, 1)}
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    state = {f"{layer}.{name}.weight": torch.ones(size) for name, size in shape.items()}
    write_adapter(tmp_path / "a.safetensors", state, metadata={}, precision="fp16")
    open_tab(page, address)
    show(page, "Tools")
    page.locator(".lt-tools .lt-card", has_text="Check a LoRA").locator("input").fill(str(tmp_path / "a.safetensors"))
    card = page.locator(".lt-tools .lt-card", has_text="Resize it")
    threshold = card.get_by_text("Share or X")
    assert not threshold.is_visible()
    card.locator("select").select_option("sv_fro")
    assert threshold.is_visible()
    card.get_by_role("button", name="Resize").click()
    card.locator(".lt-verdict", has_text="Saved").wait_for(timeout=_RUN_MS)
    assert (tmp_path / "a-sv_fro0.9.safetensors").is_file()


def test_every_visible_control_has_a_tooltip(page: Any, address: str) -> None:
    open_tab(page, address)
    fill_in_the_demo(page)
    for panel in ("Dataset", "Captions", "Train", "Monitor", "Results", "Tools"):
        show(page, panel)
        page.wait_for_timeout(1500)  # gradio builds a panel when it is opened, then JavaScript draws into it
        if panel == "Captions":
            page.click("button.lt-c-open")
            page.locator(".lt-c-gallery img").first.wait_for()
        assert page.evaluate(WITHOUT_TOOLTIP) == [], panel
        empty = "() => [...document.querySelectorAll('#lora_train_root [title=\"\"]')].map((one) => one.outerHTML)"
        assert page.evaluate(empty) == [], "an empty tooltip hides that of the element around it"


def test_at_420_px_all_tabs_and_the_search_are_whole(page: Any, address: str) -> None:
    page.set_viewport_size({"width": 420, "height": 900})
    open_tab(page, address)
    tabs = [page.get_by_role("tab", name=name, exact=True) for name in ("Dataset", "Captions", "Train", "Monitor")]
    tabs += [page.get_by_role("tab", name=name, exact=True) for name in ("Results", "Tools")]
    if tabs[0].count():  # gradio 3 wraps its tabs
        assert all(tab.bounding_box()["x"] + tab.bounding_box()["width"] <= 420 for tab in tabs)
    show(page, "Train")
    search = page.locator("#lora_train_search_input")
    search.wait_for()
    assert search.bounding_box()["width"] > 250
    show(page, "Captions")
    page.locator(".lt-captions details.lt-card").first.wait_for(state="attached")
    sizes = "(cards) => cards.map((card) => card.offsetHeight - card.querySelector('summary').offsetHeight)"
    for extra in page.locator(".lt-captions details.lt-card:not([open])").evaluate_all(sizes):
        assert extra <= 40, "a collapsed card is as high as its title and padding"


_BEYOND = """() => [...document.querySelectorAll("#lora_train_root .lt-card")].flatMap((card) => {
    const edge = card.getBoundingClientRect().right + 1;
    const scrolls = (one) => one !== card && (getComputedStyle(one).overflowX === "auto" || scrolls(one.parentElement));
    return [...card.querySelectorAll("button, input, select, textarea")]
        .filter((one) => one.offsetParent && one.getBoundingClientRect().right > edge && !scrolls(one))
        .map((one) => `${one.id || one.textContent || one.name} in ${card.id || card.className}`);
})"""


def test_no_control_leaves_its_card_at_any_width(page: Any, address: str) -> None:
    """Also between phone and desktop: webuis leave the tab less than the window, and panels share it."""
    open_tab(page, address)
    for panel in ("Dataset", "Captions", "Train", "Monitor", "Results", "Tools"):
        show(page, panel)
        for width in (1400, 1000, 800, 640, 420):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(200)
            assert page.evaluate(_BEYOND) == [], f"{panel} at {width} px"
        page.set_viewport_size({"width": 1400, "height": 900})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_narrow_screens_need_no_horizontal_scrolling(page: Any, address: str, theme: str) -> None:
    page.set_viewport_size({"width": 480, "height": 900})
    open_tab(page, f"{address}?__theme={theme}")
    for panel in ("Dataset", "Captions", "Train", "Monitor", "Results", "Tools"):
        show(page, panel)
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= 480
