"""Whether a folder can be written, without leaving anything there, and what to do if it cannot."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path


def scan_write_obstacle(folder: Path) -> str:
    """Why files cannot be written to the folder, or why it cannot be created; "" if they can. Creates nothing."""
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=place, prefix=".lora-train-"):
            return ""
    except OSError as error:
        return f"{place} cannot be written: {error.strerror or error}"


_NOT_PERMITTED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


def failed_write_advice(error: BaseException, *, instead: str = "choose another folder") -> str:
    """What to do about a file that could not be written, as a sentence; `instead` is what else would help."""
    error = system_error(error)
    number = getattr(error, "errno", None) or _number_in(str(error))
    if number in _NO_SPACE:
        return f"Free some space there, or {instead}."
    if number in _NOT_PERMITTED:
        return f"Change the permissions there, or {instead}."
    return f"Check that the folder exists and can be written, or {instead}."


def system_error(error: BaseException) -> BaseException:
    """The operating system's error behind an error; the error itself if there is none.

    Where a file cannot be written, PyTorch raises "unexpected pos 704 vs 598" while it handles "No space left".
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found or error


def _number_in(text: str) -> int | None:
    """The error number in the text of libraries written in Rust: `No space left on device (os error 28)`."""
    match = re.search(r"\(os error (\d+)\)", text)
    return int(match[1]) if match else None
