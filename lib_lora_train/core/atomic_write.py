"""Files that appear whole or not at all: a reader, or a machine that loses power, finds the old content or the new."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from lib_lora_train.core.errors import OutputError


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
    """As `write_text`, but OSError is left to the caller, who knows what was being done."""
    with unfinished(path, waits=waits) as place:
        place.write_bytes(content)


@contextlib.contextmanager
def unfinished(path: Path, *, waits: bool = True) -> Iterator[Path]:
    """A place beside `path` to write to: at the end it takes the place of `path`, after an exception it is gone.

    `waits` for the disk, which a loss of power asks for; thousands of files that can be had again are written without.
    """
    # Not named after the file, whose name may be as long as names can be; a thread writes one file at a time.
    place = path.with_name(f".lora-train-{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield place
        if waits:
            with place.open("rb+") as file:
                os.fsync(file.fileno())
        place.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
        raise
