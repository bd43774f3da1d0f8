"""Cache of encoded chunks of text by content: in memory up to a limit, and on disk if a folder is given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib_lora_train.models.latent_cache import hash_weights
from lib_lora_train.models.tensor_cache import CacheFolder, load_tensors, write_tensors
from lib_lora_train.models.text_encoding import TextCondition

if TYPE_CHECKING:
    from lib_lora_train.models.diffusion_model import DiffusionModel

_FORMAT = "text-1"  # part of every key: after a change of format old files are not found, rather than misread
_MEMORY_LIMIT = 2 << 30  # bytes


class TextCache:
    """Conditions on the CPU: of chunks, (1, 77, D), by `text_key`, or of prompts, (tokens, D), by `prompt_key`."""

    def __init__(self, folder: Path | None = None) -> None:
        self.is_on_disk = folder is not None
        self.files = CacheFolder(folder)
        self._free = _MEMORY_LIMIT
        self._in_memory: dict[str, TextCondition] = {}

    def get(self, key: str) -> TextCondition | None:
        """The condition; None if it is missing, or its file is damaged."""
        found, path = self._in_memory.get(key), self.files.path(key)
        if found is None and path is not None:
            found = load_condition(path)
            if found is not None:
                self._remember(key, found)
        return found

    def put(self, key: str, condition: TextCondition) -> None:
        """Store a condition, on disk if the folder can be written and in memory if there is room."""
        on_cpu = condition.to("cpu", condition.hidden.dtype)
        self.files.store(key, lambda path: write_condition(path, on_cpu))
        self._remember(key, on_cpu)

    def _remember(self, key: str, condition: TextCondition) -> None:
        size = condition.hidden.nbytes + (0 if condition.pooled is None else condition.pooled.nbytes)
        if self._free >= size:
            self._free -= size
            self._in_memory[key] = condition


def encoders_hash(model: DiffusionModel) -> str:
    """sha256 (hex) of the text encoders' weights."""
    return model.prompt_encoder.weights_hash() if model.prompt_encoder else hash_weights(model.text_encoders)


def text_key(model: DiffusionModel, encoders: str, clip_skip: int, tensors: Sequence[Tensor]) -> str:
    """A key that depends on the encoders, clip skip, dtype, kind of device, tokens and token weights."""
    digest = hashlib.sha256(f"{_FORMAT}/{encoders}/{clip_skip}/{model.dtype}/{model.device.type}".encode())
    for tensor in tensors:
        digest.update(f"/{tensor.dtype}/".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def prompt_key(model: DiffusionModel, encoders: str, prompt: str, *, emphasis: str) -> str:
    """A key that depends on the encoders, dtype, kind of device, the prompt, and how its brackets are read."""
    parts = (_FORMAT, "prompt", encoders, str(model.dtype), model.device.type, emphasis, prompt)
    return hashlib.sha256("/".join(parts).encode(errors="surrogatepass")).hexdigest()


def load_condition(path: Path) -> TextCondition | None:
    """The condition in a cache file; None if there is none or the file is damaged."""
    tensors = load_tensors(path)
    if tensors is None or "hidden" not in tensors:
        return None
    condition = TextCondition(tensors["hidden"], tensors.get("pooled"))
    return condition if bool(torch.isfinite(condition.hidden).all()) else None


def write_condition(path: Path, condition: TextCondition) -> None:
    """Write a cache file atomically; OutputError if that fails."""
    pooled = {} if condition.pooled is None else {"pooled": condition.pooled.contiguous()}
    write_tensors(path, {"hidden": condition.hidden.contiguous(), **pooled}, "encoded captions")
