"""Renaming a LoRA file changes the name in its metadata and nothing else."""

from __future__ import annotations

from pathlib import Path

import torch

from lib_lora_train.adapters.files.lora_file import read_adapter, write_adapter
from lib_lora_train.adapters.files.rename import write_renamed


def test_renamed_file_has_its_new_name_inside_and_the_same_tensors(tmp_path: Path) -> None:
    old, new = tmp_path / "zorp-000002.safetensors", tmp_path / "best one.safetensors"
    state = {"a.lora_down.weight": torch.rand(2, 3), "a.alpha": torch.tensor(2.0)}
    write_adapter(old, state, metadata={"ss_output_name": "zorp-000002", "ss_epoch": "2"}, precision="fp32")
    before = read_adapter(old)
    write_renamed(old, new)
    after = read_adapter(new)
    assert not old.exists() and after.metadata == {**before.metadata, "ss_output_name": "best one"}
    assert all(torch.equal(after.state[key], before.state[key]) for key in before.state)


def test_file_of_another_kind_is_only_moved(tmp_path: Path) -> None:
    old, new = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    old.write_bytes(b"x" * 100)
    write_renamed(old, new)
    assert new.read_bytes() == b"x" * 100 and not old.exists()
