"""Atomic file writes: after a crash or power loss a reader finds either the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from lib_lora_train.core.errors import OutputError
from lib_lora_train.core.writable import failed_write_advice


def write_text(path: Path, text: str, *, make_parents: bool = False) -> None:
    """Write a UTF-8 file. On failure the old file stays and OutputError is raised.

    Names of files in the text keep their bytes, even if these are not UTF-8.
    Missing folders are created only with `make_parents`: in a path the user typed they are probably a typo.
    """
    try:
        if make_parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. {failed_write_advice(error)}"
        ) from error


def write_bytes(path: Path, content: bytes, *, fsync: bool = True) -> None:
    """Like `write_text`, but raises OSError, so that the caller can say what it was doing."""
    with replacing(path, fsync=fsync) as part:
        part.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path, *, fsync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` to write to. It replaces `path` on success and is deleted after an exception.

    `fsync` guards against power loss; skip it for caches of many files that can be computed again.
    """
    # The name does not contain `path.name`, which may already have the longest length allowed. A thread writes one
    # file at a time, so process and thread make it unique.
    part = path.with_name(f".lora-train-{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        if fsync:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
