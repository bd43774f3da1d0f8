"""Images to VAE posteriors and back; posteriors are cached by content, in memory and on disk.

C: latent channels (4); h, w: height and width of the latent, an eighth of the image's.
Posteriors are stored rather than samples of them, so that every epoch samples its own latents.
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

from lib_lora_train.core.encoding_limits import BATCH_IMAGES, BATCH_PX
from lib_lora_train.core.errors import DataError
from lib_lora_train.core.events import Event, Noted, Progress
from lib_lora_train.core.image_sizes import LATENT_CELL_PX
from lib_lora_train.dataset.images import read_mask, read_pixels
from lib_lora_train.models.latent_cache import (
    LatentCache,
    Posterior,
    PosteriorCollector,
    first_indices,
    is_finite,
    vae_hash,
    view_keys,
)

if TYPE_CHECKING:
    from lib_lora_train.dataset.augmentation import View
    from lib_lora_train.dataset.plan import Plan
    from lib_lora_train.dataset.scan import Item
    from lib_lora_train.models.diffusion_model import DiffusionModel


# --- encoding -----------------------------------------------------------------------------------


def encode_dataset(model: DiffusionModel, plan: Plan, cache_dir: Path | None) -> Generator[Event, None, LatentCache]:
    """Yields progress while encoding every view of the plan; the generator's value is the cache.

    Views of one size are encoded together. Those encoded before, with the same image, mask, VAE, placement and
    augmentation, are read from `cache_dir`; None: all are kept in memory. An image that cannot be read or encoded is
    skipped with a `Noted`; a cache that cannot be written is one too. DataError if no image is left.
    """
    views, items = plan.all_views, plan.dataset.items
    keys = view_keys(vae_hash(model), plan)
    collector = PosteriorCollector(cache_dir)
    todo = [index for index in first_indices(keys) if not collector.load(keys[index])]
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
                yield Noted("warning", str(items[views[index].item].image.path), f"{reason} It is not trained on.")
        for index, posterior in zip(images, encoder.encode(list(images.values())), strict=True):
            if posterior is None:
                where = str(items[views[index].item].image.path)
                yield Noted("warning", where, "is not trained on: the VAE returns NaN for it, even in fp32.")
            else:
                collector.add(keys[index], replace(posterior, mask=masks[index]))
        done += len(batch)
        yield Progress("latents", done, total)
    if collector.files.problem:
        yield Noted("warning", "cache_to_disk", collector.files.problem)
    return _store(keys, collector)


def encode_images(model: DiffusionModel, images: Sequence[Image.Image]) -> list[Posterior | None]:
    """The posteriors of images of one size, whose sides are multiples of 8; None for those that give only NaN."""
    return _Encoder(model).encode(images)


def _mask(item: Item, view: View) -> Tensor | None:
    """A view's loss mask, (h, w) float32 in [0, 1]: each latent cell has the mean of its 8 × 8 px; None: no mask."""
    if item.mask is None:
        return None
    is_alpha = item.mask.path == item.image.path
    grey = read_mask(item.mask, view.placement, is_mirrored=view.transform.is_mirrored, alpha=is_alpha)
    raw = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(1, 1, grey.height, grey.width)
    return torch.nn.functional.avg_pool2d(raw.float() / 255.0, LATENT_CELL_PX)[0, 0]


def _store(keys: Sequence[str], collector: PosteriorCollector) -> LatentCache:
    entries = {index: collector.entries[key] for index, key in enumerate(keys) if key in collector.entries}
    if not entries:
        raise DataError("None of the images could be encoded. The warnings above give the reason for each.")
    return LatentCache(entries, frozenset(range(len(keys))) - entries.keys())


def _batches(indices: Sequence[int], plan: Plan) -> Iterator[list[int]]:
    """The views in groups of one size, up to `BATCH_PX` and `BATCH_IMAGES` each."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        placement = plan.all_views[index].placement
        by_size.setdefault((placement.width, placement.height), []).append(index)
    for (width, height), same in sorted(by_size.items()):
        count = max(1, min(BATCH_IMAGES, BATCH_PX // (width * height)))
        yield from (same[start : start + count] for start in range(0, len(same), count))


class _Encoder:
    """The model's VAE, or a float32 copy of it after the first NaN (SDXL's original VAE overflows in fp16)."""

    def __init__(self, model: DiffusionModel) -> None:
        self._vae = model.vae

    def encode(self, images: Sequence[Image.Image]) -> list[Posterior | None]:
        """One posterior per image; None for images that give NaN or infinity even in float32."""
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
        return [Posterior(_copy(mean), _copy(std)) if is_finite(mean, std) else None for mean, std in pairs]


def _copy(tensor: Tensor) -> Tensor:
    """A contiguous copy: the batch can then be freed, and convolutions may return channels-last tensors."""
    return tensor.clone(memory_format=torch.contiguous_format)


def float32_copy(vae: Any) -> Any:
    """A float32 copy of the VAE; the original, whose weights may belong to the webui, is not changed."""
    return copy.deepcopy(vae).float()


def pixels_to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return raw.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1.0


# --- decoding -----------------------------------------------------------------------------------


def decode_latents(model: DiffusionModel, latents: Tensor) -> list[Image.Image]:
    """RGB images, 8 times the size, of scaled latents (B, C, h, w); decoded one by one to save memory."""
    vae = model.vae
    images = []
    for latent in model.latent_format.unscaled(latents.detach()):
        pixels = _decode(vae, latent)
        if not is_finite(pixels) and next(vae.parameters()).dtype != torch.float32:
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
    """(3, H, W) in [-1, 1] as an RGB image; values outside are clamped, NaN becomes black.

    Rounded down, as in the webuis, so that a sample matches their image bit for bit; 1e-4 is added for pixels that were
    integers before they were converted to floats.
    """
    steps = torch.nan_to_num((pixels + 1.0) * 127.5 + 1e-4, nan=0.0).clamp(0, 255).to(torch.uint8)
    height, width = steps.shape[1:]
    return Image.frombytes("RGB", (width, height), bytes(steps.permute(1, 2, 0).contiguous().numpy()))
