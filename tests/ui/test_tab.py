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
from lib_lora_train.runs.folder import new_run_folder
from lib_lora_train.ui import tab
from lib_lora_train.ui.widgets import elem_id, first_sentence, label_of
from lib_lora_train.web.form import form_fields
from tests.paths import ROOT
from tests.stand_ins.ui import open_small_session, small_config, wiring_of, write_images


def test_every_component_has_a_unique_name_of_ours(tmp_path: Path) -> None:
    blocks = tab.build_tab(open_small_session(tmp_path)[0])
    ids = [block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None)]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("lora_train_") for name in ids)
    assert {elem_id(field.key) for field in form_fields()} <= set(ids)


def test_every_widget_has_a_label_and_help_of_its_own(tmp_path: Path) -> None:
    blocks = tab.build_tab(open_small_session(tmp_path)[0])
    by_id = {block.elem_id: block for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
    for field in form_fields():
        widget = by_id[elem_id(field.key)]
        assert widget.label == label_of(field.parameter)
        assert widget.info == first_sentence(field.parameter.help)


def test_labels_differ_within_the_run(tmp_path: Path) -> None:
    labels = [label_of(parameter) for parameter in parameters_of(TrainConfig)]
    assert len(labels) == len(set(labels))


def test_building_the_form_imports_no_torch() -> None:
    code = "import sys, lib_lora_train.ui.tab, lib_lora_train.web.routes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_tooltip_begins_with_a_whole_sentence() -> None:
    assert first_sentence("See Hang et al. 2023; 5 is usual. 0: off.") == "See Hang et al. 2023; 5 is usual"


def test_a_webuis_tab_sends_the_last_run_to_its_plot(tmp_path: Path) -> None:
    """The button is bound while the tab is built; its text names every file of the newest run, on its first prompt."""
    session, _ = open_small_session(tmp_path)
    bound: list[tuple[Any, Any]] = []
    tab.build_tab(session, lambda button, text: bound.append((button, text)))
    assert [(button.elem_id, text.elem_id) for button, text in bound] == [
        ("lora_train_xyz_send", "lora_train_xyz_text")
    ]
    assert session.xyz_text() == ""
    folder = new_run_folder(tmp_path / "home", "zok")
    write_toml_config(folder.config, small_config(tmp_path / "set"))
    loras = [tmp_path / f"zok-{epoch:06}.safetensors" for epoch in (1, 2)]
    for path in loras:
        path.touch()
    lines = [json.dumps({"kind": "LoraWritten", "path": str(path)}) for path in loras]
    folder.log.write_text("\n".join(lines), encoding="utf-8")
    assert session.xyz_text() == (
        "zkw <lora:zok-000001:1>\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 64x64, Script: X/Y/Z plot, X Type: Prompt S/R, "
        'X Values: "zok-000001,zok-000002", Y Type: Seed, Y Values: "42,43,44"'
    )


def test_an_answer_that_is_asked_for_during_a_look_shows_the_new_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page keeps the form by itself while Look reads the folders; the older plan must not come back with it."""
    session, _ = open_small_session(tmp_path)
    wiring = wiring_of(session)
    form = session.demo_form()
    wiring.look(*(form[key] for key in wiring.fields))
    both = [*json.loads(form["concepts"]), {"folder": str(write_images(tmp_path / "second", 4))}]
    values = [{**form, "concepts": json.dumps(both)}[key] for key in wiring.fields]
    reading, go_on = threading.Event(), threading.Event()

    def read_slowly(config: TrainConfig) -> Dataset:
        reading.set()
        assert go_on.wait(60)
        return read_dataset(config)

    monkeypatch.setattr("lib_lora_train.web.session.read_dataset", read_slowly)
    with ThreadPoolExecutor() as pool:
        looked = pool.submit(wiring.look, *values)
        assert reading.wait(60)
        kept = pool.submit(wiring.keep, *values)
        wait([kept], timeout=1)  # without turns it has answered by now, with the first plan
        go_on.set()
        assert "&quot;images&quot;: 4" in looked.result(60)[0]
        assert kept.result(60) == looked.result(60)


def test_the_log_has_a_sentence_for_every_event_that_is_told_once() -> None:
    """What comes with every step or image is drawn elsewhere in the Monitor."""
    drawn = {"StepDone", "Progress", "SampleDrawn"}
    kinds = {name for name, kind in vars(events).items() if dataclasses.is_dataclass(kind)} - drawn
    page = (ROOT / "javascript" / "lora_train_log.js").read_text(encoding="utf-8")
    sentences = page.partition("const SENTENCES = {")[2].partition("    };")[0]
    assert kinds == set(re.findall(r"^ {8}(\w+): ", sentences, re.MULTILINE))
