"""Presets of the user are saved, found and deleted; changes are relative to the applied presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.presets import PRESETS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.web.form import fill_form, read_form, with_values
from lib_lora_train.web.user_presets import PresetStore, applied_presets
from tests.stand_ins.ui import open_small_session, small_config


def test_a_saved_preset_restores_all_settings_except_those_of_one_run(tmp_path: Path) -> None:
    store = PresetStore(tmp_path / "presets")
    config = small_config(tmp_path).replace(rank=9, alpha=None, learning_rate=3e-5, sample_prompts=("a", "b"))
    store.save("Mine 1", fill_form(config))
    values = store.find("Mine 1").values
    assert read_form(with_values(fill_form(TrainConfig()), values))[0] == config.replace(
        concepts=(), output_name=TrainConfig().output_name
    )
    assert store.names()[-1] == "Mine 1"
    store.delete("Mine 1")
    assert "Mine 1" not in store.names()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "character", " Style ", "x" * 80, ".hidden"])
def test_a_built_in_or_invalid_name_is_refused(name: str, tmp_path: Path) -> None:
    store = PresetStore(tmp_path / "presets")
    with pytest.raises(LoraTrainError):
        store.save(name, fill_form(TrainConfig()))
    with pytest.raises(LoraTrainError):
        store.delete(name)
    assert not list(tmp_path.rglob("*.json"))


def test_invalid_settings_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(LoraTrainError, match="rank"):
        PresetStore(tmp_path).save("mine", {**fill_form(TrainConfig()), "rank": 0})


def test_a_damaged_preset_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("[", encoding="utf-8")
    with pytest.raises(LoraTrainError, match="Delete the preset"):
        PresetStore(tmp_path).find("mine")


def test_changed_settings_are_relative_to_the_applied_presets(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = fill_form(TrainConfig())
    assert session.changed_settings(form).names == ()
    form, _ = session.apply_preset(form, "Style")
    form, _ = session.apply_preset(form, "SDXL")
    assert session.changed_settings(form) == type(session.changed_settings(form))(("Style", "SDXL"), ())
    changed = session.changed_settings({**form, "rank": "7", "output_name": "x", "epochs": float(form["epochs"])})
    assert changed.names == ("rank",)
    session.save_draft(form)
    again = type(session)(session.runner, session.home, demo=lambda: TrainConfig())
    assert again.changed_settings(again.draft()).applied == ("Style", "SDXL"), "applied presets survive a reload"


def test_a_complete_preset_replaces_those_before_it(tmp_path: Path) -> None:
    store = PresetStore(tmp_path)
    store.save("mine", fill_form(TrainConfig()))
    style, sdxl = (next(p for p in PRESETS if p.name == name) for name in ("Style", "SDXL"))
    assert applied_presets(("Character", "SDXL"), style) == ("Character", "SDXL", "Style")
    assert applied_presets(("SDXL", "Style"), sdxl) == ("Style", "SDXL")
    assert applied_presets(("SDXL", "Style"), store.find("mine")) == ("mine",)
