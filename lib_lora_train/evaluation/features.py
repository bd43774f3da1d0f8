"""What an image shows, as the loaded UNet sees it: diffusion features (DIFT, Tang et al. 2023, "Emergent Correspondence
from Image Diffusion"; Luo et al. 2023, "Diffusion Hyperfeatures").

A little noise is added to the image's latent, the UNet runs once with an empty caption, and the output of one layer is
the image's features: a vector for each location, alike where two images show alike things. Averaged over an image they
mostly describe its background. So an image is cropped to what stands out from its border first, and two images are
compared location by location.

Limits: an image whose border is as busy as its subject is not cropped well, and of two subjects only the whole is
compared. Objects that differ by a small detail look alike.

B: images; D: channels of the layer; h × w: its locations; L: the locations kept of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from lib_lora_train.core.errors import DataError
from lib_lora_train.core.image_sizes import whole_unet_steps
from lib_lora_train.core.seeding import seed_for
from lib_lora_train.models.diffusion_model import DiffusionModel
from lib_lora_train.models.latents import encode_images
from lib_lora_train.models.noise_schedule import add_noise
from lib_lora_train.models.prompts import encode_prompts
from lib_lora_train.models.text_encoding import TextCondition, size_condition
from lib_lora_train.training.lease import YieldLease
from lib_lora_train.training.step import predict

TIMESTEP = 60
"""Little noise: the features describe this image, not what it could become. 20 to 200 are alike, 300 and more worse."""

_MAX_SIDE = 32  # locations per side: larger feature maps are averaged down, since every pair of locations is compared
_KEPT_SHARE = 0.375  # of the locations, those that stand out most
_OBJECT_SHARE = 0.35  # of the largest difference from the border: more than that belongs to the object
_MARGINS = (0.0, 1 / 32)  # of each crop, around the object, as a share of the image's side
_DISTANCE_WEIGHT = 0.5
_BATCH_IMAGES, _BATCH_PX = 8, 512 * 512  # at a time; a single larger image is still looked at


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """The locations of an image that stand out most from its border.

    `vectors`: (L, D) float32 of unit length. `weights`: (L,), how much each stands out; they add up to 1. `places`:
    (L, 2), row and column in the cropped image, 0…1.
    """

    vectors: Tensor
    weights: Tensor
    places: Tensor


def feature_layer(model: DiffusionModel) -> nn.Module:
    """The layer whose output is compared: the first residual block of the finest upward level that has attention.

    SD1 and SD2: `up_blocks.3.resnets.0`; SDXL, whose finest level has no attention: `up_blocks.1.resnets.0`. Later
    layers turn to colour and noise. The levels below have 4 to 16 times fewer locations, too few for one object.
    """
    levels = [
        block for block in model.require_unet("Features of images").up_blocks if getattr(block, "attentions", None)
    ]
    layer: nn.Module = levels[-1].resnets[0]
    return layer


def image_features(
    model: DiffusionModel,
    images: Sequence[Image.Image],
    *,
    side: int | None = None,
    clip_skip: int = 1,
    yield_lease: YieldLease | None = None,
) -> list[ImageFeatures]:
    """The features of RGB images of any size, in their order; three passes of the UNet for each, at `side` px.

    `side`: a multiple of 64, None for what the model was trained at; features of different sides cannot be compared.

    An adapter on the model takes part unless it is disabled: compare images under the same weights, best without one.
    The same image always has the same features: noise depends on the size alone. DataError if the VAE cannot encode an
    image.
    """
    side = side or model.spec.own_resolution
    at_once = max(1, min(_BATCH_IMAGES, _BATCH_PX // side**2))

    def compute_maps(batch: Sequence[Image.Image]) -> list[Tensor]:
        maps = _feature_maps(model, [_resized(image, side) for image in batch], clip_skip)
        if yield_lease:
            yield_lease()
        return maps

    found: list[ImageFeatures] = []
    with torch.no_grad():
        for start in range(0, len(images), at_once):
            batch = [image.convert("RGB") for image in images[start : start + at_once]]
            for margin in _MARGINS:
                boxes = map(_object_box, compute_maps(batch))
                batch = [_cropped(image, box, margin) for image, box in zip(batch, boxes, strict=True)]
            found += map(_standing_out, compute_maps(batch))
    return found


def similarity(first: ImageFeatures, second: ImageFeatures) -> float:
    """How alike two images are, at most 1 for the same image; below 0 for unlike ones.

    Every location of one image is matched with its best partner in the other, by cosine similarity less half the
    squared distance of their places; the mean of both directions, weighted by how much a location stands out.
    """
    matches = first.vectors @ second.vectors.T - _DISTANCE_WEIGHT * torch.cdist(first.places, second.places).square()
    forth = (matches.amax(1) * first.weights).sum()
    back = (matches.amax(0) * second.weights).sum()
    return float(forth + back) / 2


def nearest(query: ImageFeatures, candidates: Sequence[ImageFeatures]) -> tuple[int, float]:
    """The index of the candidate most like `query`, and how alike they are; ValueError without candidates."""
    scores = [similarity(query, candidate) for candidate in candidates]
    best = max(range(len(scores)), key=scores.__getitem__)
    return best, scores[best]


# --- one pass -----------------------------------------------------------------------------------


def _feature_maps(model: DiffusionModel, images: Sequence[Image.Image], clip_skip: int) -> list[Tensor]:
    """One (D, h, w) float32 on the processor per image; the images must be of one size."""
    latents = _latents(model, images)  # (B, C, h, w)
    generator = torch.Generator().manual_seed(seed_for(0, "features", *latents.shape[2:]))
    noise = torch.randn(latents.shape[1:], generator=generator).to(model.device).expand_as(latents)
    timesteps = torch.full((len(images),), model.schedule.as_noisy_as(TIMESTEP))
    condition = _empty_condition(model, len(images), clip_skip)
    sizes = [(image.height, image.width) for image in images]
    with _captured(feature_layer(model)) as captured:
        predict(
            model,
            add_noise(model.schedule, latents, noise, timesteps),
            timesteps,
            condition,
            size_condition(sizes, [(0, 0)] * len(images), sizes),
        )
    maps = captured[0].float().cpu()
    stride = -(-max(maps.shape[2:]) // _MAX_SIDE)
    return list(torch.nn.functional.avg_pool2d(maps, stride) if stride > 1 else maps)


def _latents(model: DiffusionModel, images: Sequence[Image.Image]) -> Tensor:
    """(B, C, h, w) float32 on the model's device, scaled as the UNet expects them."""
    posteriors = encode_images(model, images)
    means = [posterior.mean for posterior in posteriors if posterior is not None]
    if len(means) < len(images):
        raise DataError("An image cannot be compared: the VAE returns NaN for it, even in fp32.")
    latents: Tensor = model.latent_format.scaled(torch.stack(means))
    return latents.to(model.device)


def _empty_condition(model: DiffusionModel, count: int, clip_skip: int) -> TextCondition:
    return encode_prompts(model, [""] * count, clip_skip, is_weighted=False, chunks=1)


@contextmanager
def _captured(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, the list gets the layer's output of each pass."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output.detach()))
    try:
        yield outputs
    finally:
        hook.remove()


# --- what stands out ----------------------------------------------------------------------------


def _difference_from_border(features: Tensor) -> Tensor:
    """(h, w): the distance of each location's vector from the border's median, for (D, h, w)."""
    border = torch.cat([features[:, 0], features[:, -1], features[:, 1:-1, 0], features[:, 1:-1, -1]], dim=1)
    difference: Tensor = (features - border.median(dim=1).values[:, None, None]).norm(dim=0)
    return difference


def _object_box(features: Tensor) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what stands out, 0…1; the whole image where nothing does."""
    difference = _difference_from_border(features)
    rows, columns = torch.nonzero(difference > _OBJECT_SHARE * difference.max(), as_tuple=True)
    if not len(rows):
        return 0.0, 0.0, 1.0, 1.0
    height, width = difference.shape
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return float(left) / width, float(top) / height, float(right) / width, float(bottom) / height


def _cropped(image: Image.Image, box: tuple[float, float, float, float], margin: float) -> Image.Image:
    """The square around `box` with a margin, both as shares of the image; cut off and moved where it would leave it."""
    left, top, right, bottom = box[0] * image.width, box[1] * image.height, box[2] * image.width, box[3] * image.height
    side = max(right - left, bottom - top) + 2 * margin * max(image.size)
    width, height = min(side, image.width), min(side, image.height)
    x = min(max(0.0, (left + right - width) / 2), image.width - width)
    y = min(max(0.0, (top + bottom - height) / 2), image.height - height)
    return image.crop((round(x), round(y), max(round(x) + 1, round(x + width)), max(round(y) + 1, round(y + height))))


def _resized(image: Image.Image, side: int) -> Image.Image:
    """The image as a square of `side` px, down to a multiple of 64; it is distorted if it is not square."""
    side = whole_unet_steps(side)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _standing_out(features: Tensor) -> ImageFeatures:
    difference = _difference_from_border(features).flatten()
    kept = difference.topk(max(1, round(_KEPT_SHARE * difference.numel())))
    height, width = features.shape[1:]
    places = torch.stack([kept.indices // width / height, kept.indices % width / width], dim=1)
    vectors = torch.nn.functional.normalize(features.flatten(1).T[kept.indices], dim=1)
    total = kept.values.sum()
    weights = kept.values / total if total > 0 else torch.full_like(kept.values, 1 / len(kept.values))
    return ImageFeatures(vectors, weights, places)
