"""The header of a safetensors file: its metadata and the names of its tensors, read without loading any of them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib_lora_train.core.errors import AdapterError

_MOST_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's shape, and its place among the bytes behind the header."""

    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """How many it takes."""
        return self.end - self.start

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """Metadata as text, every tensor's name, and its entry by that name."""

    metadata: Mapping[str, str]
    tensors: tuple[str, ...]
    entries: Mapping[str, TensorEntry] = field(default_factory=dict)

    @property
    def data_bytes(self) -> int:
        """How many bytes have to follow the header."""
        return max((entry.end for entry in self.entries.values()), default=0)


def read_header(path: Path) -> Header:
    """The header of the file; AdapterError when it is missing, damaged or of another format."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _MOST_BYTES:
                raise ValueError("its header is too long")
            return parse_header(file.read(size))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (struct.error, ValueError) as error:
        raise AdapterError(f"{path.name} is damaged or no safetensors file. Download or train it again.") from error


def parse_header(text: bytes) -> Header:
    """The header that these bytes are; ValueError when they are none."""
    try:
        entries = json.loads(text.decode("utf-8"))
        metadata = {str(key): str(value) for key, value in entries.pop("__metadata__", {}).items()}
        return Header(metadata, tuple(entries), {str(name): _entry(value) for name, value in entries.items()})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("this is no header of a safetensors file") from error


def _entry(value: Mapping[str, Any]) -> TensorEntry:
    start, end = value["data_offsets"]
    return TensorEntry(tuple(int(size) for size in value["shape"]), int(start), int(end))
