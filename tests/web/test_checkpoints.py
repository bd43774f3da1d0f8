"""The checkpoint picker lists the files in the models folders, and says what each file is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.hosts.standalone import StandaloneHost
from lib_lora_train.models.embedded import EMBEDDED_CHECKPOINT
from lib_lora_train.ui.dataset import render_dataset
from lib_lora_train.ui.training import render_check
from lib_lora_train.web.checkpoints import CheckpointPicker, describe_file
from lib_lora_train.web.form import fill_form
from tests.stand_ins.ui import open_small_session


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for place in ("models/a.safetensors", "models/Stable-diffusion/b.safetensors", "elsewhere/c.safetensors"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EMBEDDED_CHECKPOINT, tmp_path / place)
        shutil.copy(EMBEDDED_CHECKPOINT.with_suffix(".yaml"), (tmp_path / place).with_suffix(".yaml"))
        shutil.copytree(EMBEDDED_CHECKPOINT.parent / "tokenizer", (tmp_path / place).parent / "tokenizer")
    (tmp_path / "models" / "image.safetensors").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 100)
    (tmp_path / "models" / "notes.txt").touch()
    (tmp_path / "models" / "folder.safetensors").mkdir()
    return tmp_path


def picker(home: Path, staged: list[Any]) -> CheckpointPicker:
    host = StandaloneHost(None, None, home / "models" / "Lora", "cpu")
    return CheckpointPicker(host, TrainConfig, staged.append)


def test_files_in_the_models_folder_and_beside_the_typed_one_are_listed_with_what_they_are(home: Path) -> None:
    found = picker(home, []).list_checkpoints({"checkpoint": str(home / "elsewhere" / "missing.safetensors")})
    files = {file["name"]: file for file in found["files"]}
    assert list(files) == ["a.safetensors", "image.safetensors", "b.safetensors", "c.safetensors"]
    assert all(files[f"{name}.safetensors"]["description"].startswith("SD1, predicts") for name in "abc")
    assert files["image.safetensors"]["problem"] and not files["image.safetensors"]["description"]
    assert found["current"] == EMBEDDED_CHECKPOINT.stem and found["left_out"] == 0


def test_chosen_file_is_staged_for_the_form(home: Path) -> None:
    staged: list[Any] = []
    picker(home, staged).use({"checkpoint": str(home / "models" / "a.safetensors")})
    form, message = staged[0](fill_form(TrainConfig()))
    assert form["checkpoint"] == str(home / "models" / "a.safetensors") and message == "Checkpoint changed to a."


@pytest.mark.parametrize("kind", ["missing", "image"])
def test_typed_file_that_cannot_be_used_is_an_error_at_once(home: Path, kind: str, tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path / "session")
    checked = session.check({**session.demo_form(), "checkpoint": str(home / "models" / f"{kind}.safetensors")})
    assert "checkpoint" in [problem.where for problem in checked.problems if problem.level == "error"]
    assert f"{kind}.safetensors" in render_dataset(None, checked)


def test_dataset_and_train_panel_name_the_model_in_use(tmp_path: Path) -> None:
    session, _ = open_small_session(tmp_path)
    checked = session.check(session.demo_form())
    model = f"{EMBEDDED_CHECKPOINT.stem}: SD1, predicts noise (epsilon)"
    assert model in render_dataset(None, checked) and model in render_check(checked)


def test_folder_that_may_not_be_opened_hides_no_other_checkpoint(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = home / "models" / "locked"
    locked.mkdir()
    stat = Path.stat

    def refuse(path: Path, **options: Any) -> Any:  # as an ordinary user; the tests may run as root
        if locked in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    for typed in (locked, locked / "a.safetensors", home / "models" / "a.safetensors"):
        files = picker(home, []).list_checkpoints({"checkpoint": str(typed)})["files"]
        assert {"a.safetensors", "b.safetensors"} <= {file["name"] for file in files}
        problem = describe_file(locked / "a.safetensors")["problem"]
        assert "Permission denied. Check its permissions." in problem
