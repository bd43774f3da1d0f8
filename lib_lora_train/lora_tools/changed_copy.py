"""A copy of a safetensors file with some tensors changed, written tensor by tensor."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import BinaryIO

from safetensors import safe_open
from torch import Tensor

from lib_lora_train.core import atomic_write
from lib_lora_train.core.safetensors_header import Header, TensorEntry
from lib_lora_train.lora_tools.streamed_file import header_bytes, tensor_bytes

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
        new.write(header_bytes(_moved_together(entries), metadata))
        with safe_open(str(source), framework="pt", device="cpu") as tensors:
            for name, entry in entries:
                if name in changed:
                    tensor = tensors.get_tensor(name)
                    new.write(tensor_bytes(change(name, tensor).to(tensor.dtype)))
                else:
                    old.seek(8 + size + entry.start)
                    _copy(old, new, entry.bytes)


def _moved_together(entries: list[tuple[str, TensorEntry]]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Dtype, shape and size in bytes of every tensor, in this order."""
    return {name: (entry.dtype, entry.shape, entry.bytes) for name, entry in entries}


def _copy(old: BinaryIO, new: BinaryIO, size: int) -> None:
    for start in range(0, size, _CHUNK_BYTES):
        new.write(old.read(min(_CHUNK_BYTES, size - start)))
