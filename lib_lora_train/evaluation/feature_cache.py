"""Image features cached by content: an image is looked at once, however many epochs and runs it is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from lib_lora_train.evaluation.features import ImageFeatures, image_features
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.tensor_cache import CacheFolder, load_tensors, write_tensors
from lib_lora_train.training.lease import YieldLease

_FORMAT = "features-1"  # part of every key: after a change of method old files are not found, rather than misread
_NAMES = ("vectors", "weights", "places")


class FeatureCache:
    """Features by the image's pixels and the model, in memory and, if the model's hash is known, in `folder`."""

    def __init__(self, folder: Path | None = None) -> None:
        self._files = CacheFolder(folder)
        self._in_memory: dict[str, ImageFeatures] = {}

    def features(
        self,
        model: DiffusionModel,
        images: Sequence[Image.Image],
        *,
        side: int | None = None,
        clip_skip: int = 1,
        yield_lease: YieldLease | None = None,
    ) -> list[ImageFeatures]:
        """As `image_features`, which is called for images that are not cached only."""
        side = side or model.spec.own_resolution
        keys = [_key(model, image, side, clip_skip) for image in images]
        missing = {key: image for key, image in zip(keys, images, strict=True) if not self._load(model, key)}
        made = image_features(model, list(missing.values()), side=side, clip_skip=clip_skip, yield_lease=yield_lease)
        for key, features in zip(missing, made, strict=True):
            self._in_memory[key] = features
            if model.file_hash:
                self._files.store(key, partial(_write, features))
        return [self._in_memory[key] for key in keys]

    def _load(self, model: DiffusionModel, key: str) -> bool:
        """Whether the features are in memory now."""
        path = self._files.path(key) if model.file_hash else None
        if key not in self._in_memory and path is not None:
            tensors = load_tensors(path)
            if tensors is not None and set(tensors) == set(_NAMES):
                self._in_memory[key] = ImageFeatures(**tensors)
        return key in self._in_memory


def _write(features: ImageFeatures, path: Path) -> None:
    write_tensors(path, {name: getattr(features, name) for name in _NAMES}, "image features")


def _key(model: DiffusionModel, image: Image.Image, side: int, clip_skip: int) -> str:
    """Depends on the pixels, the checkpoint and its VAE, and on what the UNet computes in."""
    model_part = f"{model.file_hash}/{model.vae_hash}/{model.dtype}/{model.device.type}/{side}/{clip_skip}"
    digest = hashlib.sha256(f"{_FORMAT}/{model_part}/{image.mode}/{image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
