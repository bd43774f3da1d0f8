"""Checkpoint and VAE files: their tensors, and why a file cannot be used."""

from __future__ import annotations

import functools
import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.safetensors_header import MAX_HEADER_BYTES, parse_header
from lib_lora_train.models.architecture import (
    TEXT_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    Shapes,
    add_text_model_prefix,
)
from lib_lora_train.models.file_kinds import refuse_other_kinds

_MARKERS = ("v_pred", "ztsnr")


@dataclass(frozen=True, eq=False)
class CheckpointFile:
    """A checkpoint's tensors by ldm name, memory-mapped on the CPU, and the file's metadata."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def hash(self) -> str:
        """sha256 (hex) of the whole file, computed on first use."""
        return file_hash(self.path)

    @property
    def shapes(self) -> Shapes:
        """Shape of every tensor, as `infer_spec` needs them."""
        return shapes_of(self.tensors)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def load_checkpoint(path: Path) -> CheckpointFile:
    """The UNet, VAE and text encoder tensors of a single-file checkpoint; leftovers of training are not read.

    ModelError for a file that is missing, damaged, not safetensors or not a checkpoint.
    """
    tensors, metadata = _load_safetensors(path, (UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES), _MARKERS)
    return CheckpointFile(path, add_text_model_prefix(tensors), metadata)


def load_vae(path: Path) -> Mapping[str, Tensor]:
    """A VAE file's tensors under ldm's names with `first_stage_model.`; ModelError if the file cannot be used."""
    _refuse_unsafe(path)
    with _opened(path) as file:
        names = [name for name in file.keys() if not re.match(r"(first_stage_model\.)?(loss|model_ema)\.", name)]  # noqa: SIM118
        prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in names) else ""
        if f"{prefix}encoder.down.0.block.0.conv1.weight" not in names:
            raise ModelError(f"{path.name} {_explain_other_vae(names)}")
        return {
            VAE_PREFIX + name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)
        }


def _explain_other_vae(names: Sequence[str]) -> str:
    """What a file is that was chosen as the VAE and is none that fits."""
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in names:
        return "is a VAE in diffusers' layout: choose the single-file (ldm) one."
    try:
        refuse_other_kinds(names)
    except ModelError as reason:
        what = str(reason).removeprefix("This is ").partition(".")[0].partition(", not a checkpoint")[0]
        if what.startswith("a VAE"):
            return "is the VAE of another kind of model (such as Wan or Qwen-Image). Choose one for SD or SDXL."
        if not what.startswith("not "):
            return f"is {what}, not a Stable Diffusion VAE. Choose a VAE file, or leave the VAE empty."
    return "is not a Stable Diffusion VAE. Choose a VAE file, or leave the VAE empty."


def replace_vae(tensors: Mapping[str, Tensor], vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors with those of the VAE replaced."""
    return {**{name: tensor for name, tensor in tensors.items() if not name.startswith(VAE_PREFIX)}, **vae}


def _load_safetensors(
    path: Path, prefixes: tuple[str, ...], markers: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    _refuse_unsafe(path)
    with _opened(path) as file:
        names = list(file.keys())
        try:
            refuse_other_kinds(names)
        except ModelError as reason:
            raise ModelError(f"{path.name}: {reason}") from None
        wanted = [name for name in names if name.startswith(prefixes) or name in markers]
        return {name: file.get_tensor(name) for name in wanted}, dict(file.metadata() or {})


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


def _refuse_unsafe(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ModelError(f"{path} {what}. Choose a .safetensors checkpoint.")
    if path.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise ModelError(
            f"{path.name} is a pickle file, which can run any program when it is opened. "
            "Convert it to .safetensors first (the webui's checkpoint merger can do that)."
        )


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as reason:
        raise ModelError(f"{path.name} {_explain_unreadable(path)}") from reason


def _explain_unreadable(path: Path) -> str:
    """Why safetensors could not open the file, from its first bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        if size < 8:
            return "is empty. Download it again."
        if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
            return "is a web page, not a model: the download failed, perhaps a log-in was required. Download it again."
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
        return f"is truncated: it has {present} of {needed} bytes of weights. Download it again."
    return "uses a data type that is not known here, or is damaged. Choose the version in fp16, bf16 or fp32."


# --- hashes -------------------------------------------------------------------------------------


def file_hash(path: Path) -> str:
    """sha256 (hex) of a file, cached until its size or modification time changes."""
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _hash(path: Path, _size: int, _changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


LEGACY_HASH_RANGE = (0x100000, 0x110000)
"""The bytes of a file that the webuis' old hash covers: 64 KiB at 1 MiB."""


def legacy_hash(path: Path) -> str:
    """The webuis' old 8-digit hash: sha256 of `LEGACY_HASH_RANGE`."""
    start, end = LEGACY_HASH_RANGE
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(end - start)).hexdigest()[:8]
