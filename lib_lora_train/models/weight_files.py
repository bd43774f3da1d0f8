"""The header of a safetensors file with weights, read without loading any tensor.

Does not import PyTorch.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.errors import AdapterError, ModelError
from lib_lora_train.core.safetensors_header import Header, TensorEntry, explain_unreadable, read_header

PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor is: its file, its name there and its entry in the file's header."""

    file: Path
    name: str
    entry: TensorEntry


def file_places(path: Path) -> dict[str, TensorPlace]:
    """The place of every tensor in a file by its name there; errors as for `read_model_header`."""
    return {name: TensorPlace(path, name, entry) for name, entry in read_model_header(path).entries.items()}


def read_model_header(path: Path) -> Header:
    """The header of a whole safetensors file; ModelError for any other file, saying what it is."""
    refuse_unsafe(path)
    try:
        header = read_header(path)
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
        is_whole = path.stat().st_size - 8 - length >= header.data_bytes
    except (AdapterError, OSError, struct.error) as reason:
        raise ModelError(f"{path.name} {explain_unreadable(path)}") from reason
    if not is_whole:
        raise ModelError(f"{path.name} {explain_unreadable(path)}")
    return header


def refuse_unsafe(path: Path) -> None:
    """ModelError for a missing file or a pickle."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist. Choose a .safetensors checkpoint.")
    if path.suffix.lower() in PICKLE_ENDINGS:
        raise ModelError(
            f"{path.name} is a pickle file, which can run any program when it is opened. "
            "Convert it to .safetensors first, under Tools or with `convert-checkpoint`."
        )
