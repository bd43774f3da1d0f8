"""Paths typed by users, with spaces, quotes and ~. Every text that becomes a path goes through here."""

from __future__ import annotations

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
