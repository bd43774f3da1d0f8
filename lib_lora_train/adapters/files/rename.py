"""Renames a LoRA file together with the name in its metadata, which webuis put into prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_lora_train.core import atomic_write

NAME_KEY = "ss_output_name"
_TITLE_KEY = "modelspec.title"


def renamed_metadata(metadata: Mapping[str, str], name: str) -> dict[str, str]:
    """The entries that hold a file's name, for a file called `name`: webuis use the first one as its alias."""
    return {NAME_KEY: name, **({_TITLE_KEY: name} if _TITLE_KEY in metadata else {})}


def write_renamed(old: Path, new: Path) -> None:
    """Move `old` to `new` and set its `ss_output_name`; a file without that key is only moved.

    OSError, with nothing changed, on failure.
    """
    header, start = _read_header(old)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or NAME_KEY not in metadata:
        old.rename(new)
        return
    metadata |= renamed_metadata(metadata, new.stem)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    text += b" " * (-len(text) % 8)
    with atomic_write.replacing(new) as place, old.open("rb") as source, place.open("wb") as target:
        source.seek(start)
        target.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(source, target)
    try:
        old.unlink()
    except OSError:  # in use, on Windows
        new.unlink()
        raise


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its tensors begin; empty if it is not one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return {}, 0
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return {}, 0
    return (header, 8 + length) if isinstance(header, dict) else ({}, 0)
