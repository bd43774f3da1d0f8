"""Presets and imported files fill in the form and report what they changed."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from lib_lora_train.config.presets import PRESETS, Preset, find_preset
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError, LoraTrainError
from lib_lora_train.formats.kohya.read_files import read_settings
from lib_lora_train.ui.sources import render_error, render_imported, render_preset
from lib_lora_train.web.form import fill_form, form_fields, read_form, with_values
from tests.paths import KOHYA_FILES as FILES
from tests.stand_ins.ui import open_small_session, wiring_of


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_preset_changes_its_settings_and_no_others(preset: Preset, tmp_path: Path) -> None:
    form = open_small_session(tmp_path)[0].demo_form()
    before, after = read_form(form)[0], read_form(with_values(form, preset.values))[0]
    assert after == before.replace(**preset.values)
    assert text_of(render_preset(preset)).startswith(f"Preset {preset.name} applied. {preset.when} Changed: ")


def test_settings_that_a_preset_resets_are_listed_separately() -> None:
    changed, back = text_of(render_preset(find_preset("LoHa"))).split("Set to default: ")
    assert "Family loha" in changed and "Rank 8" in changed
    assert "Lokr factor" in back and "Lokr factor" not in changed


def text_of(markup: str) -> str:
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", markup).split()))


def test_an_imported_file_fills_in_the_form_and_lists_what_was_not_imported(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form, imported = session.import_settings(session.demo_form(), f'"{FILES / "gui.json"}"')
    assert read_form(form)[0] == read_settings(FILES / "gui.json").config
    shown = render_imported("gui.json", imported)
    assert "settings imported from gui.json." in shown
    assert "<li>some_future_option = 3 is not a known setting.</li>" in shown
    assert "not imported" in shown


def test_a_file_without_folders_keeps_those_of_the_form(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    (tmp_path / "a.json").write_text('{"network_dim": 8, "epoch": 3}', encoding="utf-8")
    before = session.demo_form()
    form, _ = session.import_settings(before, str(tmp_path / "a.json"))
    assert (form["rank"], form["epochs"]) == (8, 3)
    assert form["concepts"] == before["concepts"] != fill_form(TrainConfig())["concepts"]


def test_every_folder_of_a_file_becomes_a_concept(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form, imported = session.import_settings(session.demo_form(), str(FILES / "dataset.toml"))
    assert len(imported.config.concepts) > 2
    assert read_form(form)[0].concepts == imported.config.concepts


@pytest.mark.parametrize("file", ["", "  ", "nowhere.json", "a.txt"])
def test_an_unreadable_file_changes_nothing(file: str, tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        session.import_settings(session.demo_form(), file)
    assert "lt-error" in render_error(refusal.value)


def test_texts_from_a_file_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"network_dim": 8, "<b>": "<script>"}', encoding="utf-8")
    shown = render_imported("<i>.json", read_settings(tmp_path / "a.json"))
    assert "<b>" not in shown
    assert "<script>" not in shown
    assert "<i>." not in shown


def test_presets_and_imports_fill_every_field_and_save_the_draft(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    wiring = wiring_of(session)
    values = [fill_form(TrainConfig())[key] for key in wiring.fields]
    answers = wiring.apply_preset("Style", *values), wiring.import_settings(str(FILES / "gui.json"), *values)
    assert {len(answer) for answer in answers} == {len(form_fields()) + 4}
    assert session.draft()["output_name"] == "fox"
    refused = wiring.import_settings("nowhere.json", *values)
    assert refused[: len(values)] == values
    assert "nowhere.json does not exist" in refused[-1]


def test_an_error_is_shown_as_a_problem() -> None:
    assert "Enter a path" in render_error(LoraTrainError("Enter a path."))
