"""Paths as people type them: with blanks, quotes and ~. Every text that becomes a path goes through here."""

from __future__ import annotations

from pathlib import Path


def typed_path(text: str) -> Path:
    """The path that is meant: blanks and quotes around it are gone, a leading ~ or ~NAME is that person's home.

    Where nobody has that NAME the text stays as it is, so that whoever looks there says that nothing is there.
    """
    path = Path(text.strip().strip("\"'"))
    try:
        return path.expanduser()
    except RuntimeError:
        return path
