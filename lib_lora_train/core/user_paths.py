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
