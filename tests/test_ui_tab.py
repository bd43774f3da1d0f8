"""The tab builds, its names are unique, and building it does not wait for PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lib_lora_train.parameters import parameters_of
from lib_lora_train.ui import tab
from lib_lora_train.ui.form import form_fields
from lib_lora_train.ui.widgets import elem_id, first_sentence, label_of
from ui_stand_ins import open_small_desk

ROOT = Path(__file__).parent.parent


def test_every_component_has_a_unique_name_of_ours(tmp_path: Path) -> None:
    blocks = tab.build_tab(open_small_desk(tmp_path)[0])
    ids = [block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None)]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("lora_train_") for name in ids)
    assert {elem_id(field.key) for field in form_fields()} <= set(ids)


def test_every_widget_has_a_label_and_help_of_its_own(tmp_path: Path) -> None:
    blocks = tab.build_tab(open_small_desk(tmp_path)[0])
    by_id = {block.elem_id: block for block in blocks.blocks.values() if getattr(block, "elem_id", None)}
    for field in form_fields():
        widget = by_id[elem_id(field.key)]
        assert widget.label == label_of(field.parameter)
        assert widget.info == first_sentence(field.parameter.help)


def test_labels_differ_within_the_run(tmp_path: Path) -> None:
    from lib_lora_train.config import TrainConfig

    labels = [label_of(parameter) for parameter in parameters_of(TrainConfig)]
    assert len(labels) == len(set(labels))


def test_building_the_form_imports_no_torch() -> None:
    code = "import sys, lib_lora_train.ui.tab, lib_lora_train.hosts.api; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_tooltip_begins_with_a_whole_sentence() -> None:
    assert first_sentence("See Hang et al. 2023; 5 is usual. 0: off.") == "See Hang et al. 2023; 5 is usual"
