"""The user's own presets: kept, found, deleted; and what differs from the ones applied."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.presets import PRESETS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.web.form import fill_form, read_form, with_values
from lib_lora_train.web.user_presets import PresetShelf, applied_after
from tests.stand_ins.ui import open_small_session, small_config


def test_a_saved_preset_brings_every_setting_back_but_those_of_one_run(tmp_path: Path) -> None:
    shelf = PresetShelf(tmp_path / "presets")
    config = small_config(tmp_path).replace(rank=9, alpha=None, learning_rate=3e-5, sample_prompts=("a", "b"))
    shelf.save("Mine 1", fill_form(config))
    values = shelf.find("Mine 1").values
    assert read_form(with_values(fill_form(TrainConfig()), values))[0] == config.replace(
        concepts=(), output_name=TrainConfig().output_name
    )
    assert shelf.names()[-1] == "Mine 1"
    shelf.delete("Mine 1")
    assert "Mine 1" not in shelf.names()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "character", " Style ", "x" * 80, ".hidden"])
def test_a_name_that_is_taken_or_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    shelf = PresetShelf(tmp_path / "presets")
    with pytest.raises(LoraTrainError):
        shelf.save(name, fill_form(TrainConfig()))
    with pytest.raises(LoraTrainError):
        shelf.delete(name)
    assert not list(tmp_path.rglob("*.json"))


def test_settings_that_cannot_be_used_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(LoraTrainError, match="rank"):
        PresetShelf(tmp_path).save("mine", {**fill_form(TrainConfig()), "rank": 0})


def test_a_damaged_preset_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("[", encoding="utf-8")
    with pytest.raises(LoraTrainError, match="Delete the preset"):
        PresetShelf(tmp_path).find("mine")


def test_only_what_differs_from_the_applied_presets_counts_as_changed(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = fill_form(TrainConfig())
    assert session.changed(form).names == ()
    form, _ = session.apply_preset(form, "Style")
    form, _ = session.apply_preset(form, "SDXL")
    assert session.changed(form) == type(session.changed(form))(("Style", "SDXL"), ())
    changed = session.changed({**form, "rank": "7", "output_name": "x", "epochs": float(form["epochs"])})
    assert changed.names == ("rank",)
    session.keep(form)
    again = type(session)(session.runner, session.home, demo=lambda: TrainConfig())
    assert again.changed(again.draft()).applied == ("Style", "SDXL"), "a reload does not forget"


def test_a_whole_preset_makes_those_before_it_void(tmp_path: Path) -> None:
    shelf = PresetShelf(tmp_path)
    shelf.save("mine", fill_form(TrainConfig()))
    style, sdxl = (next(p for p in PRESETS if p.name == name) for name in ("Style", "SDXL"))
    assert applied_after(("Character", "SDXL"), style) == ("Character", "SDXL", "Style")
    assert applied_after(("SDXL", "Style"), sdxl) == ("Style", "SDXL")
    assert applied_after(("SDXL", "Style"), shelf.find("mine")) == ("mine",)
