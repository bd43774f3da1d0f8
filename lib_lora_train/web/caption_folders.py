"""The captions of the folders that requests name. No folder is "open": two pages may work on different ones."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.user_paths import user_path
from lib_lora_train.dataset.folder_contents import is_named_for_kohya
from lib_lora_train.dataset_tools.caption_files import CaptionSet, load_captions

_MAX_KEPT = 4
_Key = tuple[Path, str]
_State = frozenset[tuple[str, int, int, int]]


class CaptionFolders:
    """Reads folders of captions, and reads them again when their files have changed. Keeps the latest few.

    `extension` returns the extension of captions in the settings.
    """

    def __init__(self, extension: Callable[[], str]) -> None:
        self._extension = extension
        self._kept: OrderedDict[_Key, tuple[_State | None, CaptionSet]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, folder: Path) -> CaptionSet:
        """The captions as they are on disk now; DataError if the folder cannot be read."""
        key, state = (folder, self._extension()), _read_state(folder)
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and state is not None and kept[0] == state:
            return kept[1]
        captions = load_captions(*key)
        with self._lock:
            self._kept[key] = state, captions
            self._kept.move_to_end(key)
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return captions

    def load_some(self, folder: Path, images: Collection[Path]) -> CaptionSet:
        """The captions of some images as they are on disk now; errors as for `load`."""
        return load_captions(folder, self._extension(), images)

    def recent(self, folder: Path) -> CaptionSet:
        """The captions as they were last read, for what need not be exact; errors as for `load`."""
        with self._lock:
            kept = self._kept.get((folder, self._extension()))
        return kept[1] if kept else self.load(folder)

    def forget(self, folder: Path) -> None:
        """Read the folder again next time: its captions were written."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == folder]:
                del self._kept[key]


def named_folder(values: Mapping[str, Any]) -> Path:
    """The data folder that a request names; DataError without one."""
    text = str(values.get("folder") or "").strip()
    if not text:
        raise DataError("Open a folder first.")
    return user_path(text)


def _read_state(folder: Path) -> _State | None:
    """Modification time, size and inode of every file, by which changes show; None if the folder cannot be read."""
    rows: list[tuple[str, int, int, int]] = []
    places = [folder]
    try:
        for place in places:
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    state = entry.stat(follow_symlinks=True)
                    rows.append((entry.path, state.st_mtime_ns, state.st_size, state.st_ino))
                    if place == folder and entry.is_dir() and is_named_for_kohya(Path(entry.path)):
                        places.append(Path(entry.path))
    except (OSError, ValueError):  # ValueError: a NUL character in the path
        return None
    return frozenset(rows)
