"""The checkpoints in a folder, by their names. Does not import PyTorch."""

from __future__ import annotations

from pathlib import Path

from lib_lora_train.core.user_paths import is_file

CHECKPOINT_ENDINGS = (".safetensors", ".ckpt")


def scan_checkpoints(folder: Path) -> list[Path]:
    """The files and model folders in the folder that may be checkpoints, in order; [] if it cannot be read."""
    try:
        found = [path for path in folder.iterdir() if _may_be_checkpoint(path)]
    except OSError:
        return []
    return sorted(found, key=lambda path: path.name.casefold())


def _may_be_checkpoint(path: Path) -> bool:
    if path.suffix.lower() in CHECKPOINT_ENDINGS and is_file(path):
        return True
    return is_file(path / "model_index.json")  # diffusers' layout
