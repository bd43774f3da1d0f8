"""The checkpoints in a folder, by their names. Does not import PyTorch."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT_ENDINGS = (".safetensors", ".ckpt")


def scan_checkpoints(folder: Path) -> list[Path]:
    """The files and model folders in the folder that may be checkpoints, in order; [] if it cannot be read."""
    try:
        found = [path for path in folder.iterdir() if _may_be_checkpoint(path)]
    except OSError:
        return []
    return sorted(found, key=lambda path: path.name.casefold())


def _may_be_checkpoint(path: Path) -> bool:
    if path.suffix.lower() in CHECKPOINT_ENDINGS and path.is_file():
        return True
    return (path / "model_index.json").is_file()  # diffusers' layout
