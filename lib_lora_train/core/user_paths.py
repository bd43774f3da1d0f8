"""Paths typed by users, with spaces, quotes and ~. Every text that becomes a path goes through here."""

from __future__ import annotations

import stat
from pathlib import Path


def user_path(text: str) -> Path:
    """The path in `text`, without surrounding spaces and quotes, and with a leading ~ or ~NAME expanded.

    If there is no user NAME, the path is returned as typed, so that opening it reports it as missing.
    """
    path = Path(text.strip().strip("\"'"))
    try:
        return path.expanduser()
    except RuntimeError:
        return path


_KINDS = {
    ".toml": "is a settings file, which `train` and `check` read.",
    ".json": "is a .json file. `import` reads those of the kohya_ss GUI.",
    ".safetensors": "is a file of weights. `check` shows what a LoRA contains, `import` reads its settings.",
}
"""Ending → what such a file is, and which commands read it."""


def explain_wrong_path(path: Path, ending: str = "") -> str:
    """Why the path cannot be a file of the kind with this ending; "" if it may be.

    Continues a sentence that begins with the path. Without an ending, files of the other kinds are refused.
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "does not exist."
    except OSError:
        return ""  # reading it reports the reason
    if is_folder:
        return "is a folder."
    return "" if path.suffix.lower() == ending else _KINDS.get(path.suffix.lower(), "")


def is_file(path: Path) -> bool:
    """Whether it is a file; False too, instead of PermissionError, if a folder on the way may not be opened."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether it is a folder; else as `is_file`."""
    try:
        return path.is_dir()
    except OSError:
        return False
