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
from lib_lora_train.core.user_paths import explain_wrong_path
from lib_lora_train.core.wording import count

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
    if reason := explain_wrong_path(path, ".safetensors"):
        raise AdapterError(f"{path} {reason} Choose a .safetensors file.")
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            return parse_header(file.read(size))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (struct.error, ValueError) as error:
        raise AdapterError(f"{path.name} {explain_unreadable(path)}") from error


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


_SIGNATURES = (
    (b"GGUF", "a GGUF file, whose weights are quantised"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"RIFF", "an image or a video"),
    (b"7z\xbc\xaf", "an archive"),
    (b"Rar!", "an archive"),
    (b"\x1f\x8b", "an archive"),
    (b"\x08\x07onnx", "an ONNX file"),
)


def explain_unreadable(path: Path) -> str:
    """Why safetensors could not open the file, from its first bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        if not size:
            return "is empty. Download it again."
        if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
            return "is a web page, not a model: the download failed, perhaps a login was required. Download it again."
        if start.startswith(b"version https://git-lfs"):
            return "is only a Git LFS pointer. Fetch the actual file with `git lfs pull`."
        if start.startswith((b"PK\x03\x04", b"\x80\x02")):
            name = " with a .safetensors name" if path.suffix.lower() == ".safetensors" else ""
            return f"is a pickle file{name}. Convert it to safetensors first."
        for signature, what in _SIGNATURES:
            if start.startswith(signature):
                return f"is {what}, not a safetensors file. Choose a .safetensors file."
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > MAX_HEADER_BYTES:
            return "is not a safetensors file. Choose a .safetensors file."
        if length > size - 8:
            return "is damaged: it ends inside its header. Download it again."
        file.seek(8)
        return _explain_truncated(file.read(length), size - 8 - length)


def _explain_truncated(header: bytes, present: int) -> str:
    try:
        needed = parse_header(header).data_bytes
    except ValueError:
        return "is not a safetensors file. Choose a .safetensors file."
    if present < needed:
        return f"is truncated: it has {present} of {count(needed, 'byte')} of weights. Download it again."
    return "uses a data type that is not known here, or is damaged. Choose the version in fp16, bf16 or fp32."
