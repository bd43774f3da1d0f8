"""Cache files of tensors, written atomically; a damaged one counts as missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import OutputError


def cache_path(folder: Path, key: str) -> Path:
    """The cache file of `key`, in a subfolder by its first two digits."""
    return folder / key[:2] / f"{key}.safetensors"


def load_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a cache file by name; None if there is none or the file is damaged."""
    if not path.is_file():
        return None
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError):
        return None
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], what: str) -> None:
    """Write a cache file atomically; OutputError, naming `what`, if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write.replacing(path, fsync=False) as place:
            save_file(dict(tensors), place)
    except (OSError, SafetensorError) as reason:
        raise OutputError(
            f"{path.parent.parent}: {what} cannot be written ({reason}). "
            "Free some space there, or turn off `cache_to_disk`."
        ) from reason
