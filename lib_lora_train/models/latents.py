"""Images to VAE posteriors and back; posteriors are cached by content, in memory and on disk.

C: latent channels (4); h, w: height and width of the latent, an eighth of the image's.
A posterior is kept instead of one sample of it, so that every epoch draws its own latents.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.events import Event, Noted, Progress
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.dataset.images import read_mask, read_pixels
from lib_lora_train.models.latent_cache import (
    LatentCache,
    Posterior,
    _Collected,
    _finite,
    _first_of_each,
    _keys,
    vae_hash,
)

if TYPE_CHECKING:
    from lib_lora_train.dataset.augmentation import View
    from lib_lora_train.dataset.plan import Plan
    from lib_lora_train.dataset.scan import Item
    from lib_lora_train.models.diffusion_model import DiffusionModel

_PIXELS_PER_BATCH = 4 * 512 * 512
_BATCH_LIMIT = 8


# --- encoding -----------------------------------------------------------------------------------


def encode_dataset(model: DiffusionModel, plan: Plan, cache_dir: Path | None) -> Generator[Event, None, LatentCache]:
    """Yields the progress of encoding every view of the plan and returns, as the generator's value, the store.

    Views of one size are encoded together. What was encoded before, by content of image, mask and VAE, placement
    and look, is taken from `cache_dir`; None keeps all in memory. An image that cannot be read or encoded
    is left out with a `Noted`. OutputError if the cache cannot be written; DataError if no image is left.
    """
    views, items = plan.all_views, plan.dataset.items
    keys = _keys(vae_hash(model), plan)
    collected = _Collected(cache_dir)
    todo = [index for index in _first_of_each(keys) if not collected.load(keys[index])]
    total = len(todo)
    yield Progress("latents", 0, total)
    encoder = _Encoder(model)
    done = 0
    for batch in _batches(todo, plan):
        images: dict[int, Image.Image] = {}
        masks: dict[int, Tensor | None] = {}
        for index in batch:
            try:
                view = views[index]
                masks[index] = _mask(items[view.item], view)
                images[index] = read_pixels(items[view.item].image, view.placement, view.transform)
            except DataError as reason:
                yield Noted("warning", str(items[views[index].item].image.path), f"left out: {reason}")
        for index, posterior in zip(images, encoder.encode(list(images.values())), strict=True):
            if posterior is None:
                where = str(items[views[index].item].image.path)
                yield Noted("warning", where, "left out: the VAE gives NaN for it, in fp32 too.")
            else:
                collected.add(keys[index], replace(posterior, mask=masks[index]))
        done += len(batch)
        yield Progress("latents", done, total)
    return _store(keys, collected)


def _mask(item: Item, view: View) -> Tensor | None:
    """Where a view's loss counts, (h, w) float32 in [0, 1]: each latent cell has the mean of its 8 × 8 px."""
    if item.mask is None:
        return None
    is_alpha = item.mask.path == item.image.path
    grey = read_mask(item.mask, view.placement, is_mirrored=view.transform.is_mirrored, alpha=is_alpha)
    raw = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(1, 1, grey.height, grey.width)
    return torch.nn.functional.avg_pool2d(raw.float() / 255.0, LATENT_CELL_PX)[0, 0]


def _store(keys: Sequence[str], collected: _Collected) -> LatentCache:
    entries = {index: collected.entries[key] for index, key in enumerate(keys) if key in collected.entries}
    if not entries:
        raise DataError("None of the images could be encoded; see the warnings above for each of them.")
    return LatentCache(entries, frozenset(range(len(keys))) - entries.keys())


def _batches(indices: Sequence[int], plan: Plan) -> Iterator[list[int]]:
    """The items in groups of one size, as many as fit into the pixels of four 512 px images."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        placement = plan.all_views[index].placement
        by_size.setdefault((placement.width, placement.height), []).append(index)
    for (width, height), same in sorted(by_size.items()):
        count = max(1, min(_BATCH_LIMIT, _PIXELS_PER_BATCH // (width * height)))
        yield from (same[start : start + count] for start in range(0, len(same), count))


class _Encoder:
    """The model's VAE, and its float32 copy from the first NaN on (SDXL's own VAE overflows in fp16)."""

    def __init__(self, model: DiffusionModel) -> None:
        self._vae = model.vae

    def encode(self, images: Sequence[Image.Image]) -> list[Posterior | None]:
        """One posterior per image; None where even float32 gives NaN or infinity."""
        if not images:
            return []
        found = self._encode(images)
        if None in found and next(self._vae.parameters()).dtype != torch.float32:
            self._vae = float32_copy(self._vae)
            found = self._encode(images)
        return found

    def _encode(self, images: Sequence[Image.Image]) -> list[Posterior | None]:
        parameter = next(self._vae.parameters())
        batch = torch.stack([pixels_to_tensor(image) for image in images])
        with torch.no_grad():
            moments = self._vae.encode(batch.to(parameter.device, parameter.dtype)).latent_dist
            means, stds = moments.mean.float().cpu(), moments.std.float().cpu()
        pairs = zip(means, stds, strict=True)
        return [Posterior(_own(mean), _own(std)) if _finite(mean, std) else None for mean, std in pairs]


def _own(tensor: Tensor) -> Tensor:
    """Its own contiguous memory: the batch is freed, and convolutions may answer channels-last."""
    return tensor.clone(memory_format=torch.contiguous_format)


def float32_copy(vae: Any) -> Any:
    """The VAE once more in float32; the given one, whose weights may belong to the webui, stays as it is."""
    return copy.deepcopy(vae).float()


def pixels_to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return raw.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1.0


# --- keys and files -----------------------------------------------------------------------------


# --- decoding -----------------------------------------------------------------------------------


def decode_latents(model: DiffusionModel, latents: Tensor) -> list[Image.Image]:
    """RGB images of 8 times the size for scaled latents (B, C, h, w), one after the other to save memory."""
    vae = model.vae
    images = []
    for latent in latents.detach() / model.spec.scale_factor:
        pixels = _decode(vae, latent)
        if not _finite(pixels) and next(vae.parameters()).dtype != torch.float32:
            vae = float32_copy(vae)
            pixels = _decode(vae, latent)
        images.append(tensor_to_pixels(pixels))
    return images


def _decode(vae: Any, latent: Tensor) -> Tensor:
    parameter = next(vae.parameters())
    with torch.no_grad():
        pixels: Tensor = vae.decode(latent[None].to(parameter.device, parameter.dtype)).sample[0]
    return pixels.float().cpu()


def tensor_to_pixels(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] as an RGB image; what is outside is cut, what is not a number becomes black.

    Rounded down, as the webuis do, so that a sample is their image to the last bit; the small number is there
    for pixels that were whole numbers before they were made floats.
    """
    steps = torch.nan_to_num((pixels + 1.0) * 127.5 + 1e-4, nan=0.0).clamp(0, 255).to(torch.uint8)
    height, width = steps.shape[1:]
    return Image.frombytes("RGB", (width, height), bytes(steps.permute(1, 2, 0).contiguous().numpy()))
