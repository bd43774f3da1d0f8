"""A tiny WD14 tagger: real files, written by hand from the ONNX format's own numbers (onnx.proto, IR version 8).

The network is sigmoid(flattened input × weights), so that what a tagger must say can be computed beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FLOAT = 1


def _number(value: int) -> bytes:
    """A protobuf varint."""
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _field(number: int, content: int | str | bytes) -> bytes:
    if isinstance(content, int):
        return _number(number << 3) + _number(content)
    raw = content.encode() if isinstance(content, str) else content
    return _number(number << 3 | 2) + _number(len(raw)) + raw


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    """ValueInfoProto: a float tensor; a text is a size that is not fixed."""
    dims = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, FLOAT) + _field(2, dims)))


def _node(operation: str, inputs: Sequence[str], output: str) -> bytes:
    return b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, operation)


def _weights(name: str, values: Any) -> bytes:
    dims = b"".join(_field(1, size) for size in values.shape)
    return dims + _field(2, FLOAT) + _field(8, name) + _field(9, values.astype("<f4").tobytes())


def onnx_bytes(weights: Any, shape: Sequence[int | str]) -> bytes:
    """A ModelProto: Flatten, MatMul with `weights` (inputs, tags), Sigmoid."""
    nodes = [
        _node("Flatten", ["image"], "flat"),
        _node("MatMul", ["flat", "weights"], "sums"),
        _node("Sigmoid", ["sums"], "scores"),
    ]
    graph = (
        b"".join(_field(1, node) for node in nodes)
        + _field(2, "tiny")
        + _field(5, _weights("weights", weights))
        + _field(11, _value("image", shape))
        + _field(12, _value("scores", ["images", weights.shape[1]]))
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


def write_wd14(folder: Path, tags: Sequence[tuple[str, int]], *, size: int = 4, seed: int = 0) -> Any:
    """A WD14 folder whose tags are (name, danbooru's category); returns its weights (size · size · 3, tags)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.random.default_rng(seed).normal(0, 0.005, (size * size * 3, len(tags))).astype(np.float32)
    (folder / "model.onnx").write_bytes(onnx_bytes(weights, ["images", size, size, 3]))
    rows = [f"{number},{name},{category},{100 - number}" for number, (name, category) in enumerate(tags)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n", encoding="utf-8")
    return weights
