"""Whatever a person types as a path is read in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.user_paths import typed_path
from lib_lora_train.dataset.scan import read_dataset
from tests.paths import PACKAGE
from tests.stand_ins.ui import open_small_session


@pytest.mark.parametrize("typed", ['"{}"', "'{}'", "  {} ", "{}"])
def test_blanks_and_quotes_around_a_path_are_not_meant(typed: str, tmp_path: Path) -> None:
    assert typed_path(typed.format(tmp_path / "my cats")) == tmp_path / "my cats"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert typed_path("~/cats") == tmp_path / "cats"


def test_the_home_of_nobody_is_told_as_a_folder_that_is_not_there() -> None:
    config = TrainConfig(concepts=(Concept(folder="~nosuchuser/cats"),))
    with pytest.raises(DataError, match="~nosuchuser"):
        read_dataset(config)


@pytest.mark.parametrize("field", ["checkpoint", "vae", "continue_from", "output_dir"])
def test_the_form_answers_whatever_is_typed_as_a_path(field: str, tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    form = {**session.demo_form(), field: "~nosuchuser/x.safetensors"}
    session.keep(form)
    assert session.look(form).plan is not None


def test_no_other_place_expands_paths() -> None:
    others = [file.name for file in PACKAGE.rglob("*.py") if "expanduser" in file.read_text(encoding="utf-8")]
    assert others == ["typed_paths.py"]
