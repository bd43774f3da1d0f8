"""The tab builds, its names are unique, and building it does not wait for PyTorch."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core import events
from lib_lora_train.dataset.scan import Dataset, read_dataset
from lib_lora_train.formats.toml import write_toml_config
from lib_lora_train.runs.records.folder import new_run_folder
from lib_lora_train.ui import tab
from lib_lora_train.ui.widgets import elem_id, first_sentence, label_of
from lib_lora_train.web.form import form_fields
from tests.paths import ROOT
from tests.stand_ins.ui import open_small_session, small_config, wiring_of, write_images


def test_every_component_has_a_unique_id_with_our_prefix(tmp_path: Path) -> None:
    blocks = tab.build_tab(open_small_session(tmp_path)[0])
    ids = [block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None)]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("lora_train_") for name in ids)
    assert {elem_id(field.key) for field in form_fields()} <= set(ids)


def test_every_widget_has_its_label_and_help(tmp_path: Path) -> None:
    blocks = tab.build_tab(open_small_session(tmp_path)[0])
    by_id = {block.elem_id: block for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
    for field in form_fields():
        widget = by_id[elem_id(field.key)]
        assert widget.label == label_of(field.parameter)
        assert widget.info == first_sentence(field.parameter.help)


def test_labels_are_unique(tmp_path: Path) -> None:
    labels = [label_of(parameter) for parameter in parameters_of(TrainConfig)]
    assert len(labels) == len(set(labels))


def test_building_the_form_does_not_import_torch() -> None:
    code = "import sys, lib_lora_train.ui.tab, lib_lora_train.web.routes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_first_sentence_does_not_end_at_an_abbreviation() -> None:
    assert first_sentence("See Hang et al. 2023; 5 is usual. 0: off.") == "See Hang et al. 2023; 5 is usual"


def test_the_last_run_can_be_sent_to_the_xyz_plot(tmp_path: Path) -> None:
    """The button is bound when the tab is built; its text names all files of the newest run, with its first prompt."""
    session, _ = open_small_session(tmp_path)
    bound: list[tuple[Any, Any]] = []
    tab.build_tab(session, lambda button, text: bound.append((button, text)))
    assert [(button.elem_id, text.elem_id) for button, text in bound] == [
        ("lora_train_paste_send", "lora_train_paste_text"),
        ("lora_train_xyz_send", "lora_train_xyz_text"),
    ]
    assert session.xyz_text() == ""
    folder = new_run_folder(tmp_path / "home", "zok")
    write_toml_config(folder.config, small_config(tmp_path / "set"))
    loras = [tmp_path / f"zok-{epoch:06}.safetensors" for epoch in (1, 2)]
    for path in loras:
        path.touch()
    lines = [json.dumps({"kind": "LoraWritten", "path": str(path), "epoch": 1, "step": 5}) for path in loras]
    folder.log.write_text("\n".join(lines), encoding="utf-8")
    assert session.xyz_text() == (
        "zkw <lora:zok-000001:1>\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 64x64, Script: X/Y/Z plot, X Type: Prompt S/R, "
        'X Values: "zok-000001,zok-000002", Y Type: Seed, Y Values: "42,43,44", Clip skip: 1, '
        "Source: LoRA Train"
    )


def test_a_callback_during_a_scan_shows_the_new_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page saves the draft while the folders are scanned; that must not bring the old plan back."""
    session, _ = open_small_session(tmp_path)
    wiring = wiring_of(session)
    form = session.demo_form()
    wiring.scan(*(form[key] for key in wiring.fields))
    both = [*json.loads(form["concepts"]), {"folder": str(write_images(tmp_path / "second", 4))}]
    values = [{**form, "concepts": json.dumps(both)}[key] for key in wiring.fields]
    reading, continue_reading = threading.Event(), threading.Event()

    def read_slowly(config: TrainConfig) -> Dataset:
        reading.set()
        assert continue_reading.wait(60)
        return read_dataset(config)

    monkeypatch.setattr("lib_lora_train.web.session.read_dataset", read_slowly)
    with ThreadPoolExecutor() as pool:
        scanned = pool.submit(wiring.scan, *values)
        assert reading.wait(60)
        saved = pool.submit(wiring.save_draft, *values)
        wait([saved], timeout=1)  # without the lock it would have returned the first plan by now
        continue_reading.set()
        assert "&quot;images&quot;: 4" in scanned.result(60)[0]
        assert saved.result(60) == scanned.result(60)


def test_the_log_has_a_sentence_for_every_event_not_drawn_elsewhere() -> None:
    """Events of single steps and images are drawn elsewhere in the Monitor."""
    drawn = {"StepDone", "Progress", "SamplesStarted", "SampleDrawn"}
    kinds = {name for name, kind in vars(events).items() if dataclasses.is_dataclass(kind)} - drawn
    page = (ROOT / "javascript" / "lora_train_log.js").read_text(encoding="utf-8")
    sentences = page.partition("const SENTENCES = {")[2].partition("    };")[0]
    assert kinds == set(re.findall(r"^ {8}(\w+): ", sentences, re.MULTILINE))


def test_no_rule_of_the_style_sheet_has_a_list_inside_has() -> None:
    """Gradio writes a prefix after every comma of a selector; inside `:has()` the rule then matches nothing."""
    style = (ROOT / "style.css").read_text(encoding="utf-8")
    assert re.findall(r":has\([^()]*,[^()]*\)", style) == []
