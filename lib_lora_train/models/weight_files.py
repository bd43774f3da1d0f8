"""The header of a safetensors file with weights, and why a file is none, read without loading any tensor.

Does not import PyTorch.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from lib_lora_train.core.errors import AdapterError, ModelError
from lib_lora_train.core.safetensors_header import MAX_HEADER_BYTES, Header, TensorEntry, parse_header, read_header
from lib_lora_train.core.wording import count

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


def refuse_unsafe(path: Path) -> None:
    """ModelError for a missing file or a pickle."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist. Choose a .safetensors checkpoint.")
    if path.suffix.lower() in PICKLE_ENDINGS:
        raise ModelError(
            f"{path.name} is a pickle file, which can run any program when it is opened. "
            "Convert it to .safetensors first (the webui's checkpoint merger can do that)."
        )


def explain_unreadable(path: Path) -> str:
    """Why safetensors could not open the file, from its first bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        if size < 8:
            return "is empty. Download it again."
        if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
            return "is a web page, not a model: the download failed, perhaps a login was required. Download it again."
        if start.startswith(b"version https://git-lfs"):
            return "is only a Git LFS pointer. Fetch the actual file with `git lfs pull`."
        if start.startswith((b"PK\x03\x04", b"\x80\x02")):
            return "is a pickle file with a .safetensors name. Convert it to safetensors first."
        for signature, what in _SIGNATURES:
            if start.startswith(signature):
                return f"is {what}, not a safetensors file. Choose a .safetensors checkpoint."
        (length,) = struct.unpack("<Q", start[:8])
        if length > MAX_HEADER_BYTES:
            return "is not a safetensors file. Choose a .safetensors checkpoint."
        if length > size - 8:
            return "is damaged: it ends inside its header. Download it again."
        file.seek(8)
        return _explain_truncated(file.read(length), size - 8 - length)


def _explain_truncated(header: bytes, present: int) -> str:
    try:
        needed = parse_header(header).data_bytes
    except ValueError:
        return "is not a safetensors file. Choose a .safetensors checkpoint."
    if present < needed:
        return f"is truncated: it has {present} of {count(needed, 'byte')} of weights. Download it again."
    return "uses a data type that is not known here, or is damaged. Choose the version in fp16, bf16 or fp32."
