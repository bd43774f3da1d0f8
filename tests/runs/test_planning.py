"""The plan proves that the output folder can be written, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError
from lib_lora_train.core.writable import scan_write_obstacle
from lib_lora_train.runs.checks.write_places import WritePlaces, place_problems
from lib_lora_train.runs.planning import plan_run
from lib_lora_train.runs.records.folder import RunFolder


@pytest.mark.parametrize("inside", ["", "loras", "a/b/c"])
def test_output_folder_that_cannot_be_made_is_refused_by_the_plan(inside: str, tmp_path: Path) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(ConfigError, match=r"output_dir.*a-file is not a folder"):
        plan_run(TrainConfig(output_dir=str(tmp_path / "a-file" / inside)))


UNWRITABLE: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "run folder": ("outputs", {}, "error", ""),
    "latent cache": ("outputs/latents", {"cache_to_disk": True}, "warning", "cache_to_disk"),
    "text cache": ("outputs/text", {"cache_to_disk": True}, "warning", "cache_to_disk"),
    "TensorBoard": ("outputs/tensorboard", {"tensorboard": True}, "warning", "tensorboard"),
    "LoRA folder": ("models/Lora", {}, "error", "output_dir"),
    "states of a resumed run": ("outputs/run/states", {"save_state": True}, "warning", "save_state"),
    "samples of a resumed run": ("outputs/run/samples", {"sample_prompts": ("a",)}, "warning", "sample_prompts"),
}


@pytest.mark.parametrize("place", UNWRITABLE)
def test_every_folder_that_a_run_writes_to_is_tried_by_the_plan(place: str, tmp_path: Path) -> None:
    """A file is in the place of the folder: the tests may run as root, who can write everywhere."""
    name, settings, level, where = UNWRITABLE[place]
    config = TrainConfig(cache_to_disk=False).replace(**settings)
    is_resumed = "resumed" in place
    places = WritePlaces(
        tmp_path / "outputs", tmp_path / "models" / "Lora", RunFolder(tmp_path / "outputs/run") if is_resumed else None
    )
    assert place_problems(config, places) == []
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    (problem,) = place_problems(config, places)
    assert (problem.level, problem.where) == (level, where) and str(tmp_path / name) in problem.message


def test_folder_that_can_be_made_is_not_made_by_the_check(tmp_path: Path) -> None:
    assert scan_write_obstacle(tmp_path / "new" / "loras") == "" and list(tmp_path.iterdir()) == []
