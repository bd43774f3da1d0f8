"""A heat map as an image, to be laid over the one it is of."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

_COLOURS = ((59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))
"""From 0 to 1, dark to bright; so it can be read without colours. Points of matplotlib's magma."""
_OPACITY = 0.9  # where the map is 1


def heat_layer(values: Tensor) -> Image.Image:
    """The map (height, width), 0…1, as RGBA: transparent where it is 0, and bright where it is 1."""
    table = torch.tensor(_COLOURS, dtype=torch.float32)
    place = values.clamp(0, 1) * (len(_COLOURS) - 1)
    below = place.floor().long().clamp_max(len(_COLOURS) - 2)
    share = (place - below)[..., None]
    colours = table[below] * (1 - share) + table[below + 1] * share
    opacity = (values.clamp(0, 1).sqrt() * _OPACITY * 255)[..., None]
    pixels = torch.cat([colours, opacity], dim=-1).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGBA")


def overlay(image: Image.Image, values: Tensor) -> Image.Image:
    """The RGB image with the map of its size on it."""
    return Image.alpha_composite(image.convert("RGBA"), heat_layer(values)).convert("RGB")
