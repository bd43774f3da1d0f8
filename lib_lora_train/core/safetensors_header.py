"""The header of a safetensors file: metadata, tensor names and shapes, read without loading any tensor."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import AdapterError

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's shape, its byte range in the data after the header, and its dtype in the format's own words."""

    shape: tuple[int, ...]
    start: int
    end: int
    dtype: str = ""

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start

    @property
    def element_count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """Metadata, tensor names in file order, and each tensor's entry by name."""

    metadata: Mapping[str, str]
    tensors: tuple[str, ...]
    entries: Mapping[str, TensorEntry] = field(default_factory=dict)

    @property
    def data_bytes(self) -> int:
        """Number of bytes that must follow the header."""
        return max((entry.end for entry in self.entries.values()), default=0)


def read_header(path: Path) -> Header:
    """The file's header. AdapterError if the file is missing, damaged or not a safetensors file."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            return parse_header(file.read(size))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (struct.error, ValueError) as error:
        raise AdapterError(f"{path.name} is damaged or not a safetensors file. Download or train it again.") from error


def parse_header(text: bytes) -> Header:
    """The header parsed from its JSON bytes; ValueError if they are not one."""
    try:
        entries = json.loads(text.decode("utf-8"))
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        return Header(metadata, tuple(entries), {str(name): _entry(value) for name, value in entries.items()})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a safetensors header") from error


def _entry(value: Mapping[str, Any]) -> TensorEntry:
    start, end = value["data_offsets"]
    return TensorEntry(tuple(int(size) for size in value["shape"]), int(start), int(end), str(value.get("dtype", "")))
