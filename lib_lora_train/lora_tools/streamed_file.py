"""A safetensors file that is written tensor by tensor, so that a large model is never in memory as a whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import torch
from torch import Tensor

_ALIGNMENT = 8


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The file's header with its length before it.

    `tensors` has each one's dtype in the format's words, its shape, and its size in bytes, in the order in which they
    follow, without gaps.
    """
    places, start = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        places[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps({"__metadata__": dict(metadata), **places}, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def tensor_bytes(tensor: Tensor) -> bytes:
    """The tensor's elements in C order, as they follow the header."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
