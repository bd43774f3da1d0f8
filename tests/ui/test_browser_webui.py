"""The tab beside a webui's txt2img, in a real browser: LoRAs and the settings of their samples arrive there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.core.events import LoraWritten
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.records.event_log import log_line, log_record
from lib_lora_train.runs.records.folder import new_run_folder
from tests.stand_ins.ui import small_config
from tests.ui.test_browser import open_tab, page, pytestmark, serving, show

__all__ = ["page", "pytestmark"]

_VALUES = """() => Object.fromEntries([...document.querySelectorAll("[id^='txt2img_'] textarea")]
    .map((box) => [box.closest("[id^='txt2img_']").id.replace("txt2img_", ""), box.value]))"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a webui with one past run, of two LoRA files."""
    home = tmp_path_factory.mktemp("home")
    write_run(home)
    with serving(home, "webui") as address:
        yield address


@pytest.fixture(scope="module")
def address_of_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same with two embeddings of the word zkw."""
    home = tmp_path_factory.mktemp("home")
    write_run(home, method="textual_inversion")
    with serving(home, "webui") as address:
        yield address


def write_run(home: Path, **values: Any) -> None:
    """A past run with two files."""
    folder = new_run_folder(home / "outputs", "zok")
    prompts = ("zok --w 128 --h 192 --s 12 --l 3.5 --d 9",)
    write_toml_config(folder.config, small_config(home / "set").replace(sample_prompts=prompts, clip_skip=2, **values))
    files = [home / f"zok-{epoch:06}.safetensors" for epoch in (1, 2)]
    for file in files:
        file.touch()
    lines = (log_line(log_record(LoraWritten(str(file), epoch, epoch))) for epoch, file in enumerate(files, start=1))
    folder.log.write_text("".join(lines), encoding="utf-8")


def open_run(page: Any, address: str) -> Any:
    """The past run in Results, with the user's own prompts in txt2img."""
    open_tab(page, address)
    page.get_by_role("tab", name="Other").click()
    page.fill("#txt2img_prompt textarea", "a fox")
    page.fill("#txt2img_neg_prompt textarea", "blurry")
    page.get_by_role("tab", name="LoRA Train").click()
    show(page, "Results")
    return page.locator(".lt-run[open]")  # the newest run is unfolded


def test_use_with_settings_fills_in_prompts_size_steps_cfg_sampler_and_clip_skip(page: Any, address: str) -> None:
    run = open_run(page, address)
    run.locator(".lt-table").get_by_role("button", name="Use with settings").first.click()
    page.wait_for_function("document.querySelector('#txt2img_width textarea').value")
    assert page.evaluate(_VALUES) == {
        "prompt": "zkw, a fox <lora:zok-000001:1>",
        "neg_prompt": "blurry",
        "steps": "12",
        "sampling": "Euler a",
        "cfg_scale": "3.5",
        "width": "128",
        "height": "192",
        "clip_skip": "2",
    }


def test_the_epochs_of_a_run_arrive_in_the_xyz_plot(page: Any, address: str) -> None:
    run = open_run(page, address)
    run.get_by_role("button", name="Send to X/Y/Z plot").first.click()
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value !== 'a fox'")
    values = page.evaluate(_VALUES)
    assert values["prompt"] == "zok <lora:zok-000001:1>"
    assert (values["width"], values["clip_skip"]) == ("128", "2")


def test_name_of_an_embedding_takes_the_place_of_its_word_and_of_another_epoch(
    page: Any, address_of_embeddings: str
) -> None:
    run = open_run(page, address_of_embeddings)
    for before, button, after in (
        ("a fox", 0, "zok-000001, a fox"),
        ("a ZKW on grass, zkwx", 0, "a zok-000001 on grass, zkwx"),
        ("a (zok-000001:1.1) on grass", 1, "a (zok-000002:1.1) on grass"),
    ):
        page.get_by_role("tab", name="Other").click()
        page.fill("#txt2img_prompt textarea", before)
        page.get_by_role("tab", name="LoRA Train").click()
        run.locator(".lt-table").get_by_role("button", name="Use in prompt").nth(button).click()
        page.wait_for_function("text => document.querySelector('#txt2img_prompt textarea').value !== text", arg=before)
        assert page.input_value("#txt2img_prompt textarea") == after
