"""The header of a safetensors file: its metadata and the names of its tensors, read without loading any of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.errors import AdapterError

_MOST_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Header:
    """Metadata as text, and every tensor's name."""

    metadata: Mapping[str, str]
    tensors: tuple[str, ...]


def read_header(path: Path) -> Header:
    """The header of the file; AdapterError when it is missing, damaged or of another format."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _MOST_BYTES:
                raise ValueError("its header is too long")
            entries = json.loads(file.read(size).decode("utf-8"))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (struct.error, ValueError, RecursionError) as error:
        raise AdapterError(f"{path.name} is damaged or no safetensors file. Download or train it again.") from error
    if not isinstance(entries, dict) or not isinstance(entries.get("__metadata__", {}), dict):
        raise AdapterError(f"{path.name} is damaged or no safetensors file. Download or train it again.")
    metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
    return Header(metadata, tuple(entries))
