"""Cache files of tensors, written atomically; a damaged one counts as missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lib_lora_train.core import atomic_write
from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.writable import failed_write_advice


def cache_path(folder: Path, key: str) -> Path:
    """The cache file of `key`, in a subfolder by its first two digits."""
    return folder / key[:2] / f"{key}.safetensors"


class CacheFolder:
    """A folder of cache files, or none. The first failure to write ends writing: no run may end for its cache.

    `problem` is that failure, as a sentence, "" if there was none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._is_writable = folder is not None
        self.problem = ""

    def path(self, key: str) -> Path | None:
        """The cache file of `key`; None without a folder."""
        return cache_path(self._folder, key) if self._folder is not None else None

    def store(self, key: str, write: Callable[[Path], None]) -> bool:
        """Call `write` with the cache file of `key`, if it can still be written; whether the file is there now."""
        path = self.path(key)
        if path is None or not self._is_writable:
            return False
        try:
            write(path)
        except OutputError as error:
            self._is_writable, self.problem = False, f"{error} The run continues and keeps the rest in memory."
        return self._is_writable


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
            f"{failed_write_advice(reason, instead='turn off `cache_to_disk`')}"
        ) from reason
