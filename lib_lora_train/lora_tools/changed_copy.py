"""A copy of a safetensors file with some tensors changed, written tensor by tensor."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from lib_lora_train.core import atomic_write
from lib_lora_train.core.safetensors_header import Header, TensorEntry

_ALIGNMENT = 8
_CHUNK_BYTES = 1 << 24


def write_changed_copy(
    source: Path,
    header: Header,
    path: Path,
    *,
    metadata: Mapping[str, str],
    changed: Collection[str],
    change: Callable[[str, Tensor], Tensor],
) -> None:
    """Write `source`, which has this header, to `path`, with `change(name, tensor)` in place of each `changed` tensor.

    Every tensor keeps its place, shape and dtype; at most one is in memory. OSError or SafetensorError if it cannot be
    written; nothing is left then.
    """
    entries = sorted(header.entries.items(), key=lambda entry: entry[1].start)
    with atomic_write.replacing(path) as part, source.open("rb") as old, part.open("wb") as new:
        (size,) = struct.unpack("<Q", old.read(8))
        new.write(_header_bytes(entries, metadata))
        with safe_open(str(source), framework="pt", device="cpu") as tensors:
            for name, entry in entries:
                if name in changed:
                    tensor = tensors.get_tensor(name)
                    new.write(_bytes(change(name, tensor).to(tensor.dtype)))
                else:
                    old.seek(8 + size + entry.start)
                    _copy(old, new, entry.bytes)


def _header_bytes(entries: list[tuple[str, TensorEntry]], metadata: Mapping[str, str]) -> bytes:
    """The header with its length before it; the tensors follow in this order, without gaps."""
    places, start = {}, 0
    for name, entry in entries:
        places[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [start, start + entry.bytes]}
        start += entry.bytes
    text = json.dumps({"__metadata__": dict(metadata), **places}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _copy(old: BinaryIO, new: BinaryIO, size: int) -> None:
    for start in range(0, size, _CHUNK_BYTES):
        new.write(old.read(min(_CHUNK_BYTES, size - start)))
