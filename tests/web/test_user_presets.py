"""Presets of the user are saved, found and deleted; changes are relative to the applied presets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.card_presets import MY_CARD
from lib_lora_train.config.parameters import parameters_of
from lib_lora_train.config.presets import PRESETS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import LoraTrainError
from lib_lora_train.hosts.host import Gpu, RunTarget
from lib_lora_train.ui.sources import render_preset
from lib_lora_train.web.form import fill_form, load_draft, read_form, with_values
from lib_lora_train.web.user_presets import PresetStore
from tests.stand_ins.tiny_models import write_tiny_checkpoint
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


@pytest.mark.parametrize("key", [parameter.name for parameter in parameters_of(TrainConfig)])
def test_a_value_of_a_wrong_kind_in_a_preset_is_left_out_and_named(tmp_path: Path, key: str) -> None:
    values = {"rank": 9, key: {"a": []}, "gone": 1}
    (tmp_path / "mine.json").write_text(json.dumps(values), encoding="utf-8")
    store = PresetStore(tmp_path)
    preset = store.find("mine")
    assert preset.values == ({} if key == "rank" else {"rank": 9})
    assert [one.split()[0].rstrip(":") for one in preset.left_out] == [key, "gone"]
    assert all(one.split()[0] in render_preset(preset) for one in preset.left_out)
    assert "mine" in store.names() and store.changed_values(fill_form(TrainConfig()), ["mine"]) is not None


def test_one_damaged_preset_leaves_the_others(tmp_path: Path) -> None:
    for name, text in (("a", "[" * 100_000), ("b", "[1]"), ("c", '{"rank": 9}')):
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    store = PresetStore(tmp_path)
    for name in "ab":
        with pytest.raises(LoraTrainError, match="Delete the preset"):
            store.find(name)
    assert store.names()[-3:] == ("a", "b", "c") and store.find("c").values == {"rank": 9}


def test_changed_settings_are_relative_to_the_applied_presets(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = fill_form(TrainConfig())
    assert session.changed_settings(form).names == ()
    form, _ = session.apply_preset(form, "Style")
    assert session.changed_settings(form) == type(session.changed_settings(form))(("Style",), {})
    changed = session.changed_settings({**form, "rank": "7", "output_name": "x", "epochs": float(form["epochs"])})
    assert changed.names == ("rank",)
    assert changed.values["rank"] == (str(form["rank"]), "7")
    session.save_draft(form)
    again = type(session)(session.runner, session.home, demo=lambda: TrainConfig())
    assert again.changed_settings(again.draft()).applied == ("Style",), "applied presets survive a reload"


@pytest.mark.parametrize("second", [preset.name for preset in PRESETS])
def test_a_preset_replaces_the_one_before(tmp_path: Path, second: str) -> None:
    session, _ = open_small_session(tmp_path)
    form = {**session.demo_form(), "output_name": "mine", "sample_prompts": "my prompt"}
    alone, _ = session.apply_preset(form, second)
    assert alone["output_name"] == "mine" and alone["concepts"] == form["concepts"]
    for first in PRESETS:
        after, _ = session.apply_preset(session.apply_preset(form, first.name)[0], second)
        assert after == alone, first.name


def test_reset_leaves_only_what_belongs_to_the_run(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = {**session.demo_form(), "rank": "77", "output_name": "mine", "sample_prompts": "my prompt"}
    reset = session.reset_settings(form)
    assert session.changed_settings(reset).names == ("sample_prompts",)
    assert (reset["output_name"], reset["concepts"]) == ("mine", form["concepts"])


@pytest.mark.parametrize("replace", ["preset", "reset", "demo", "train again"])
def test_whatever_replaces_the_settings_can_be_undone_and_redone(tmp_path: Path, replace: str) -> None:
    session, _ = open_small_session(tmp_path)
    mine = {**fill_form(TrainConfig()), "rank": "77", "sample_prompts": "my prompt"}
    session.changes.applied = ("Style",)
    if replace == "train again":
        session._stage_settings(TrainConfig(), "a-run")
    changes: dict[str, Callable[[], Any]] = {
        "preset": lambda: session.apply_preset(mine, "SDXL")[0],
        "reset": lambda: session.reset_settings(mine),
        "demo": lambda: session.fill_demo(mine),
        "train again": lambda: session.changes.pop(mine)[0],
    }
    replaced = changes[replace]()
    assert replaced != mine
    session.run_action("form-undo", {})
    assert session.changes.pop(replaced)[0] == mine
    assert session.changes.applied == ("Style",)
    session.run_action("form-undo", {})
    assert session.changes.pop(mine)[0] == replaced


def test_a_preset_and_a_form_that_a_text_editor_has_saved_are_read(tmp_path: Path) -> None:
    """Windows' editors put a byte order mark first."""
    presets = PresetStore(tmp_path)
    (tmp_path / "mine.json").write_text('{"rank": 7}', encoding="utf-8-sig")
    (tmp_path / "folder.json").mkdir()
    assert presets.find("mine").values == {"rank": 7}
    assert "folder" not in presets.names()
    (tmp_path / "draft.json").write_text('{"rank": 7}', encoding="utf-8-sig")
    draft = load_draft(tmp_path)
    assert draft.form and draft.form["rank"] == 7 and not draft.left_out


# --- the preset for the card at hand ------------------------------------------------------------------


def _apply_my_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, memory: int | None, checkpoint: Path | None
) -> tuple[Any, Any]:
    session, _ = open_small_session(tmp_path)
    gpu = None if memory is None else Gpu("RTX", memory, memory)
    target = RunTarget(checkpoint, False, 2, "RTX", gpu)
    monkeypatch.setattr(session.runner.host, "run_target", lambda _config: target)
    return session.apply_preset(fill_form(small_config(tmp_path)), MY_CARD)


def test_my_card_applies_the_preset_for_the_card_and_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "xl.safetensors", "sdxl")
    form, preset = _apply_my_card(tmp_path, monkeypatch, memory=12 * 2**30, checkpoint=checkpoint)
    assert preset.name == "SDXL on 12 GB"
    assert {name: getattr(read_form(form)[0], name) for name in preset.values} == preset.values


@pytest.mark.parametrize(
    ("memory", "has_checkpoint", "message"),
    [
        (None, True, "No graphics card was found"),
        (12 * 2**30, False, "depends on the checkpoint. Choose one first"),
        (4 * 2**30, True, "SDXL needs a card with 8 GB; the RTX has 4.0 GB"),
    ],
)
def test_my_card_says_why_no_preset_fits(
    memory: int | None, has_checkpoint: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "xl.safetensors", "sdxl") if has_checkpoint else None
    with pytest.raises(LoraTrainError, match=message):
        _apply_my_card(tmp_path, monkeypatch, memory=memory, checkpoint=checkpoint)
