"""Every path that a user types is read in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.train_config import Concept, TrainConfig
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.scan import read_dataset
from tests.paths import PACKAGE


@pytest.mark.parametrize("typed", ['"{}"', "'{}'", "  {} ", "{}"])
def test_surrounding_spaces_and_quotes_are_removed(typed: str, tmp_path: Path) -> None:
    assert user_path(typed.format(tmp_path / "my cats")) == tmp_path / "my cats"


def test_a_tilde_is_expanded_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    assert user_path("~/cats") == tmp_path / "cats"


def test_the_home_of_an_unknown_user_is_reported_as_a_missing_folder() -> None:
    config = TrainConfig(concepts=(Concept(folder="~nosuchuser/cats"),))
    with pytest.raises(DataError, match="~nosuchuser"):
        read_dataset(config)


def test_no_other_place_expands_paths() -> None:
    others = [file.name for file in PACKAGE.rglob("*.py") if "expanduser" in file.read_text(encoding="utf-8")]
    assert others == ["user_paths.py"]
