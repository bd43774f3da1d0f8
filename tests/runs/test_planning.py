"""The plan proves that the output folder can be written, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.core.writable import scan_write_obstacle
from lib_lora_train.runs.planning import plan_run


@pytest.mark.parametrize("inside", ["", "loras", "a/b/c"])
def test_output_folder_that_cannot_be_made_is_refused_by_the_plan(inside: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(ConfigError, match=r"output_dir.*a-file is not a folder"):
        plan_run(TrainConfig(output_dir=str(tmp_path / "a-file" / inside)))


def test_folder_that_can_be_made_is_not_made_by_the_check(tmp_path: Path) -> None:
    assert scan_write_obstacle(tmp_path / "new" / "loras") == "" and list(tmp_path.iterdir()) == []
