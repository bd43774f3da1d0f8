"""Cache of VAE posteriors by content, in memory and on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lib_lora_train.core.errors import TrainingError
from lib_lora_train.dataset.images import NO_TRANSFORM
from lib_lora_train.models.tensor_cache import CacheFolder, load_tensors, write_tensors

if TYPE_CHECKING:
    from lib_lora_train.dataset.plan import Plan
    from lib_lora_train.models.diffusion_model import DiffusionModel
    from lib_lora_train.models.latent_format import LatentFormat

_FORMAT = "posterior-1"  # part of every key: after a change of format old files are not found, rather than misread
_MEMORY_LIMIT = 2 << 30  # bytes of posteriors in memory, if they are on disk too


@dataclass(frozen=True, eq=False)
class Posterior:
    """An image's latent distribution: `mean` and `std`, (C, h, w) float32 on the CPU, unscaled.

    `mask`, (h, w) float32 in [0, 1], weights the loss; None: 1 everywhere.
    """

    mean: Tensor
    std: Tensor
    mask: Tensor | None = None

    def sample(self, noise: Tensor, latent_format: LatentFormat) -> Tensor:
        """A scaled latent, (C, h, w), as the UNet expects it, for standard normal `noise`."""
        return latent_format.scaled(self.mean + self.std * noise)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.mean.nbytes + self.std.nbytes + (0 if self.mask is None else self.mask.nbytes)


class LatentCache:
    """The posterior of every view of a dataset, by number; those beyond the memory limit are read from disk.

    An item's first view has the item's number. `missing` holds the views that could not be encoded; looking one up
    raises KeyError.
    """

    def __init__(self, entries: Mapping[int, Posterior | Path], missing: frozenset[int]) -> None:
        self._entries = dict(entries)
        self.missing = missing

    def __getitem__(self, view: int) -> Posterior:
        entry = self._entries[view]
        if isinstance(entry, Posterior):
            return entry
        stored = load_posterior(entry)
        if stored is None:
            raise TrainingError(
                f"{entry}: the cached latent is missing or damaged. Start again; it will be encoded again."
            )
        return stored

    def __contains__(self, view: int) -> bool:
        return view in self._entries

    def __len__(self) -> int:
        return len(self._entries)


class PosteriorCollector:
    """Posteriors by key, in memory up to a limit, and on disk if there is a cache folder that can be written."""

    def __init__(self, cache_dir: Path | None) -> None:
        self.entries: dict[str, Posterior | Path] = {}
        self.files = CacheFolder(cache_dir)
        self._free = _MEMORY_LIMIT

    def load(self, key: str) -> bool:
        """Load a posterior from the cache folder; False if it is missing or damaged, and must be encoded."""
        path = self.files.path(key)
        stored = None if path is None else load_posterior(path)
        if stored is not None:
            self._remember(key, stored, path)
        return stored is not None

    def add(self, key: str, posterior: Posterior) -> None:
        """Store a posterior, on disk first."""
        is_stored = self.files.store(key, lambda path: write_posterior(path, posterior))
        self._remember(key, posterior, self.files.path(key) if is_stored else None)

    def _remember(self, key: str, posterior: Posterior, path: Path | None) -> None:
        """Keep a posterior in memory, or its file if it has one and there is no room."""
        self._free -= posterior.nbytes
        self.entries[key] = path if path is not None and self._free < 0 else posterior


def is_finite(*tensors: Tensor) -> bool:
    """Whether no tensor holds NaN or infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def view_keys(vae: str, plan: Plan) -> list[str]:
    """Per view a key that depends on the image's bytes, the VAE, size, crop, augmentation and mask."""
    keys = []
    for view in plan.all_views:
        item = plan.dataset.items[view.item]
        parts: list[object] = [_FORMAT, vae, item.image.content_hash, *astuple(view.placement)]
        if view.transform != NO_TRANSFORM:
            parts += ["look", *astuple(view.transform)]
        if item.mask is not None:
            parts += ["mask", item.mask.content_hash]
        keys.append(hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest())
    return keys


def first_indices(keys: Sequence[str]) -> list[int]:
    """The index of each key's first occurrence: an image that is in the dataset twice is encoded once."""
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    return list(first.values())


def vae_hash(model: DiffusionModel) -> str:
    """sha256 (hex) of the VAE's weights: the same VAE from another file or webui shares the cache."""
    return hash_weights([model.vae])


def hash_weights(modules: Iterable[Any]) -> str:
    """sha256 (hex) of the names, shapes and values of all weights."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(flat.numpy()))
    return digest.hexdigest()


def load_posterior(path: Path) -> Posterior | None:
    """The posterior in a cache file; None if there is none or the file is damaged."""
    tensors = load_tensors(path)
    if tensors is None or not {"mean", "std"} <= tensors.keys():
        return None
    posterior = Posterior(tensors["mean"], tensors["std"], tensors.get("mask"))
    return posterior if is_finite(posterior.mean, posterior.std) else None


def write_posterior(path: Path, posterior: Posterior) -> None:
    """Write a cache file atomically; OutputError if that fails."""
    mask = {} if posterior.mask is None else {"mask": posterior.mask}
    write_tensors(path, {"mean": posterior.mean, "std": posterior.std, **mask}, "the latent cache")
