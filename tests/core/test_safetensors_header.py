"""The header of a safetensors file is read without its tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.safetensors_header import TensorEntry, read_header


def _write(path: Path, header: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def test_metadata_names_shapes_and_sizes_are_read(tmp_path: Path) -> None:
    values = {
        "__metadata__": {"ss_seed": 42},
        "b": {"dtype": "F16", "shape": [2, 3], "data_offsets": [4, 16]},
        "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    header = read_header(_write(tmp_path / "a.safetensors", json.dumps(values).encode()))
    assert header.metadata == {"ss_seed": "42"}
    assert header.tensors == ("b", "a")
    assert header.entries["b"] == TensorEntry((2, 3), 4, 16, "F16")
    assert (header.entries["b"].bytes, header.entries["b"].element_count) == (12, 6)
    assert header.entries["a"].element_count == 1
    assert header.data_bytes == 16


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b"\xff", b'{"a": 1}', b'{"a": {"shape": [1]}}', b"[" * 5000])
def test_a_damaged_header_is_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(AdapterError, match=r"a\.safetensors is (not a safetensors file|damaged)"):
        read_header(_write(tmp_path / "a.safetensors", header))


def test_a_short_file_or_an_absurd_length_is_refused(tmp_path: Path) -> None:
    for content in (b"\x01", struct.pack("<Q", 2**60) + b"{}"):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(AdapterError, match="is not a safetensors file"):
            read_header(tmp_path / "a.safetensors")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"none\.safetensors does not exist\. Choose"):
        read_header(tmp_path / "none.safetensors")
