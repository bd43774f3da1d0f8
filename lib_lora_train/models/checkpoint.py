"""Checkpoint and VAE files: their tensors, and why a file cannot be used."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_lora_train.core.errors import ModelError
from lib_lora_train.models.architecture import (
    TEXT_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    Shapes,
    add_text_model_prefix,
)
from lib_lora_train.models.file_kinds import explain_other_vae, refuse_other_kinds
from lib_lora_train.models.model_files import MARKER_TENSORS, explain_unreadable, refuse_unsafe


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
    tensors, metadata = _load_safetensors(path, (UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES), MARKER_TENSORS)
    return CheckpointFile(path, add_text_model_prefix(tensors), metadata)


def load_vae(path: Path) -> Mapping[str, Tensor]:
    """A VAE file's tensors under ldm's names with `first_stage_model.`; ModelError if the file cannot be used."""
    refuse_unsafe(path)
    with _opened(path) as file:
        names = [name for name in file.keys() if not re.match(r"(first_stage_model\.)?(loss|model_ema)\.", name)]  # noqa: SIM118
        prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in names) else ""
        if f"{prefix}encoder.down.0.block.0.conv1.weight" not in names:
            raise ModelError(f"{path.name} {explain_other_vae(names)}")
        return {
            VAE_PREFIX + name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)
        }


def replace_vae(tensors: Mapping[str, Tensor], vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors with those of the VAE replaced."""
    return {**{name: tensor for name, tensor in tensors.items() if not name.startswith(VAE_PREFIX)}, **vae}


def _load_safetensors(
    path: Path, prefixes: tuple[str, ...], markers: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    refuse_unsafe(path)
    with _opened(path) as file:
        names = list(file.keys())
        try:
            refuse_other_kinds(names)
        except ModelError as reason:
            raise ModelError(f"{path.name}: {reason}") from None
        wanted = [name for name in names if name.startswith(prefixes) or name in markers]
        return {name: file.get_tensor(name) for name in wanted}, dict(file.metadata() or {})


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as reason:
        raise ModelError(f"{path.name} {explain_unreadable(path)}") from reason


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
