"""Files that appear whole or not at all: a reader, or a machine that loses power, finds the old content or the new."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from lib_lora_train.errors import OutputError


def write_text(path: Path, text: str, *, makes_folder: bool = False) -> None:
    """Write a UTF-8 file; OutputError, leaving what was there, if that fails.

    A missing folder is made only if asked for: in a place that a person typed it is a slip.
    """
    try:
        if makes_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode("utf-8"))
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. Free some space there, or choose another place."
        ) from error


def write_bytes(path: Path, content: bytes, *, waits: bool = True) -> None:
    """As `write_text`, but OSError is left to the caller, who knows what was being done.

    `waits` for the disk, which a loss of power asks for; thousands of files with a backup are written without.
    """
    # Not named after the file, whose name may be as long as names can be; a thread writes one file at a time.
    unfinished = path.with_name(f".lora-train-{os.getpid()}-{threading.get_ident()}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            if waits:
                os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
