"""A copied base stored in 8 bit: half of 16 bit's memory for the UNet's weights, computed in the model's own dtype.

Linear and Conv2d weights are kept as float8 e4m3 (Micikevicius et al. 2022: 4 exponent and 3 mantissa bits, to 448) and
made into the computing dtype each time they are asked for, so that a layer computes exactly what a plain one with the
rounded weights does. Only for weights of our own: a webui's live weights stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STORED = torch.float8_e4m3fn
_KEPT_WHOLE = ("conv_in", "conv_out", "time_embedding.", "add_embedding.")
"""A few small layers at both ends, where rounding shows most."""


class _EightBit:
    """`weight` in the computing dtype, made anew from what is stored each time it is asked for."""

    stored: Tensor
    computing: torch.dtype

    @property
    def weight(self) -> Tensor:
        """As the plain layer's, rounded to 8 bit."""
        return self.stored.to(self.computing)


class EightBitLinear(_EightBit, nn.Linear):  # type: ignore[override]  # a property where nn.Linear has a parameter
    """nn.Linear on a stored 8-bit weight."""


class EightBitConv2d(_EightBit, nn.Conv2d):  # type: ignore[override]
    """nn.Conv2d on a stored 8-bit weight."""


def store_in_eight_bit(unet: nn.Module) -> int:
    """Put 8-bit layers into the UNet in place of its Linear and Conv2d layers; returns the bytes that are saved.

    Weights beyond ±448 would be infinite; there are none in Stable Diffusion, and such a layer is left as it is.
    """
    saved = 0
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and not name.startswith(_KEPT_WHOLE):
            smaller = _smaller(layer)
            if smaller is not None:
                parent, _, last = name.rpartition(".")
                setattr(unet.get_submodule(parent), last, smaller)
                saved += layer.weight.numel() * (layer.weight.element_size() - STORED.itemsize)
    return saved


def is_eight_bit(layer: nn.Module) -> bool:
    """Whether the layer's weight is made anew at each use; holding on to it would waste what the storage saves."""
    return isinstance(layer, _EightBit)


def _smaller(layer: nn.Linear | nn.Conv2d) -> nn.Module | None:
    weight = layer.weight.detach()
    if weight.abs().max() > torch.finfo(STORED).max:
        return None
    kind: Any = EightBitLinear if isinstance(layer, nn.Linear) else EightBitConv2d
    smaller = kind.__new__(kind)
    smaller.__dict__.update(layer.__dict__)  # sizes, stride, padding, mode: everything but the weight
    smaller._parameters = {key: value for key, value in layer._parameters.items() if key != "weight"}
    smaller._buffers = dict(layer._buffers)
    smaller.register_buffer("stored", weight.to(STORED), persistent=False)
    smaller.computing = weight.dtype
    return smaller  # type: ignore[no-any-return]
