"""Arguments of sd-scripts whose values follow a rule, not one setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya.exporter import write_exported
from lib_lora_train.formats.kohya.read_files import read_settings
from lib_lora_train.formats.kohya.script_export import MAX_SEED, last_steps, script_arguments


@pytest.mark.parametrize(("files", "every"), [(1, 2), (1, 100), (2, 1), (2, 2), (3, 1), (3, 100), (4, 7)])
def test_as_many_step_files_are_kept(files: int, every: int) -> None:
    """By the rule of sd-scripts: a save at step s deletes the last file before s - last_steps; 0 keeps all."""
    last = last_steps(TrainConfig(keep_last_step_files=files, save_every_n_steps=every))
    assert last > 0
    kept: set[int] = set()
    for step in range(every, 10 * every + 1, every):
        kept.add(step)
        kept.discard((step - last - 1) // every * every)
    assert len(kept) == files


def test_a_single_step_file_is_read_back(tmp_path: Path) -> None:
    config = TrainConfig(keep_last_step_files=1, save_every_n_steps=100)
    write_exported(tmp_path / "a.toml", config, "sd-scripts")
    assert read_settings(tmp_path / "a.toml").config.keep_last_step_files == 1


@pytest.mark.parametrize(("seed", "written"), [(MAX_SEED - 1, 2**32 - 2), (MAX_SEED, 2**32 - 1), (MAX_SEED + 6, 5)])
def test_seeds_beyond_those_of_numpy_start_again_at_zero(seed: int, written: int) -> None:
    assert script_arguments(TrainConfig(seed=seed), ())["seed"] == written


@pytest.mark.parametrize(("width", "height"), [(1536, 768), (768, 1536), (1536, None)])
def test_the_largest_bucket_holds_the_resolution(width: int, height: int | None) -> None:
    """sd-scripts refuses a resolution above max_bucket_reso."""
    config = TrainConfig(resolution=width, resolution_height=height, max_bucket=1280)
    assert script_arguments(config, ())["max_bucket_reso"] == 1536
