"""Checkpoints and VAEs: their tensors and hashes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lib_lora_train.core.errors import ModelError
from lib_lora_train.core.safetensors_header import explain_unreadable
from lib_lora_train.models.architecture import VAE_PREFIX, CheckpointHints, Shapes, add_text_model_prefix
from lib_lora_train.models.model_files import read_contents, read_vae_places
from lib_lora_train.models.model_folder import read_weight_files
from lib_lora_train.models.weight_files import TensorPlace


@dataclass(frozen=True, eq=False)
class CheckpointFile:
    """A checkpoint's tensors by ldm name, memory-mapped on the CPU, its metadata, and what shapes do not show.

    `path` is a file, or a folder in diffusers' layout.
    """

    path: Path
    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    hints: CheckpointHints

    @property
    def hash(self) -> str:
        """sha256 (hex) of the whole checkpoint, computed on first use."""
        return model_hash(self.path)

    @property
    def shapes(self) -> Shapes:
        """Shape of every tensor, as `infer_spec` needs them."""
        return shapes_of(self.tensors)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def load_checkpoint(path: Path) -> CheckpointFile:
    """The UNet, VAE and text encoder tensors of a checkpoint; leftovers of training are not read.

    ModelError for a file that is missing, damaged, not safetensors or not a checkpoint, and for such a folder.
    """
    contents = read_contents(path)
    tensors = add_text_model_prefix(load_tensors(contents.places))
    if path.is_dir():
        tensors = {name: _as_in_a_file(name, tensor) for name, tensor in tensors.items()}
    return CheckpointFile(contents.path, contents.name, tensors, contents.metadata, contents.hints)


def _as_in_a_file(name: str, tensor: Tensor) -> Tensor:
    """The tensor in the order in memory that it has after loading a single file, which decides how products round.

    OpenCLIP's text projection, the only one that differs, is transposed there.
    """
    return tensor.t().contiguous().t() if name.endswith(".text_projection.weight") else tensor


def load_vae(path: Path) -> Mapping[str, Tensor]:
    """A VAE's tensors under ldm's names with `first_stage_model.`; VaeError if it cannot be used."""
    return load_tensors(read_vae_places(path))


def replace_vae(tensors: Mapping[str, Tensor], vae: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's tensors with those of the VAE replaced."""
    return {**{name: tensor for name, tensor in tensors.items() if not name.startswith(VAE_PREFIX)}, **vae}


def load_tensors(places: Mapping[str, TensorPlace]) -> dict[str, Tensor]:
    """The tensors at these places, memory-mapped on the CPU; ModelError for a file that cannot be read."""
    with ExitStack() as stack:
        opened = {file: stack.enter_context(_opened(file)) for file in {place.file for place in places.values()}}
        return {name: opened[place.file].get_tensor(place.name) for name, place in places.items()}


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


def model_hash(path: Path) -> str:
    """sha256 (hex) of a checkpoint: of the file, or of a list of the weight files that are read from a folder.

    The list has a line `sha256  part/file` for each file, in the order of their names, as `sha256sum` prints it. It
    does not depend on where the folder is, nor on its configs.
    """
    if not path.is_dir():
        return file_hash(path)
    files = sorted(read_weight_files(path), key=lambda file: file.relative_to(path).as_posix())
    lines = [f"{file_hash(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
    """The webuis' old 8-digit hash: sha256 of `LEGACY_HASH_RANGE`; "" for a folder, which has none."""
    if path.is_dir():
        return ""
    start, end = LEGACY_HASH_RANGE
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.sha256(file.read(end - start)).hexdigest()[:8]
