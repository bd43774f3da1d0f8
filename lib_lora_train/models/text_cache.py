"""Encoded chunks of text, kept by content: in memory up to a limit, and on disk where a folder is given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib_lora_train.models.latent_cache import weights_hash
from lib_lora_train.models.tensor_cache import load_tensors, write_tensors
from lib_lora_train.models.text_encoding import TextCondition

if TYPE_CHECKING:
    from lib_lora_train.models.diffusion_model import DiffusionModel

_FORMAT = "text-1"  # part of every key: a change of what is stored makes old files unfindable, not wrong
_MEMORY_LIMIT = 2 << 30  # bytes


class TextStore:
    """Conditions of single chunks, (1, 77, D), on the processor, by the key that `text_key` gives."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._free = _MEMORY_LIMIT
        self._kept: dict[str, TextCondition] = {}

    @property
    def is_on_disk(self) -> bool:
        """Whether there is a folder."""
        return self._folder is not None

    def get(self, key: str) -> TextCondition | None:
        """The condition; None if it is not there, or its file is damaged."""
        kept = self._kept.get(key)
        if kept is None and self._folder is not None:
            kept = load_condition(self._file(key))
            if kept is not None:
                self._keep(key, kept)
        return kept

    def put(self, key: str, condition: TextCondition) -> None:
        """Keep a condition, where there is room; OutputError if the folder cannot be written."""
        own = condition.to("cpu", condition.hidden.dtype)
        if self._folder is not None:
            write_condition(self._file(key), own)
        self._keep(key, own)

    def _keep(self, key: str, condition: TextCondition) -> None:
        size = condition.hidden.nbytes + (0 if condition.pooled is None else condition.pooled.nbytes)
        if self._free >= size:
            self._free -= size
            self._kept[key] = condition

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.safetensors"


def encoders_hash(model: DiffusionModel) -> str:
    """sha256 (hex) over the text encoders' weights."""
    return weights_hash(model.text_encoders)


def text_key(model: DiffusionModel, encoders: str, clip_skip: int, tensors: Sequence[Tensor]) -> str:
    """A name that changes with the encoders, clip skip, number format, kind of device, tokens and weights."""
    digest = hashlib.sha256(f"{_FORMAT}/{encoders}/{clip_skip}/{model.dtype}/{model.device.type}".encode())
    for tensor in tensors:
        digest.update(f"/{tensor.dtype}/".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_condition(path: Path) -> TextCondition | None:
    """The condition in a cache file; None if there is none or the file is damaged."""
    tensors = load_tensors(path)
    if tensors is None or "hidden" not in tensors:
        return None
    condition = TextCondition(tensors["hidden"], tensors.get("pooled"))
    return condition if bool(torch.isfinite(condition.hidden).all()) else None


def write_condition(path: Path, condition: TextCondition) -> None:
    """Writes a cache file that is either complete or not there; OutputError if that fails."""
    pooled = {} if condition.pooled is None else {"pooled": condition.pooled.contiguous()}
    write_tensors(path, {"hidden": condition.hidden.contiguous(), **pooled}, "encoded captions")
