"""Settings exported for kohya's tools from the page and over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError, OutputError
from lib_lora_train.formats.kohya.read_files import read_settings
from lib_lora_train.ui.sources import render_exported
from lib_lora_train.web.form_session import FormSession


@pytest.fixture
def session(tmp_path: Path) -> FormSession:
    return FormSession(tmp_path / "home", lambda: TrainConfig(rank=24))


def test_the_form_is_written_for_the_program_of_the_ending(session: FormSession, tmp_path: Path) -> None:
    for name in ("fox.json", "fox.toml"):
        exported = session.export_settings(session.demo_form(), f'"{tmp_path / name}"')
        assert exported.paths == (tmp_path / name,)
        assert read_settings(tmp_path / name).config.rank == 24
        assert f"Saved to {tmp_path / name}." in render_exported(exported)


@pytest.mark.parametrize(("file", "message"), [("", "Enter the path"), ("fox.txt", "must end in .json")])
def test_a_path_that_cannot_be_used_is_explained(session: FormSession, file: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        session.export_settings(session.demo_form(), file)


def test_other_programs_export_their_own_settings(session: FormSession, tmp_path: Path) -> None:
    export = session.form_actions()["form-export"]
    answer = export({"file": str(tmp_path / "a.toml"), "settings": {"rank": 5, "make_grid": False}})
    assert answer is not None
    assert answer["files"] == [str(tmp_path / "a.toml")]
    assert any("precision" in line for line in answer["not_kept"])
    assert any("make_grid" in line for line in answer["no_effect"])
    assert read_settings(tmp_path / "a.toml").config.rank == 5
    with pytest.raises(ConfigError, match="rank"):
        export({"file": str(tmp_path / "b.toml"), "settings": {"rank": "five"}})


def test_nothing_is_overwritten(session: FormSession, tmp_path: Path) -> None:
    (tmp_path / "a-dataset.toml").write_text("mine", encoding="utf-8")
    folders = {"concepts": [{"folder": str(tmp_path), "repeats": 2}]}
    with pytest.raises(OutputError, match=r"a-dataset\.toml already exists"):
        session.form_actions()["form-export"]({"file": str(tmp_path / "a.json"), "settings": folders})
    assert not (tmp_path / "a.json").exists()
