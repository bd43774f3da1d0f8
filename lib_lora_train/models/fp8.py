"""A base model stored in fp8: half the memory of 16-bit weights, computed in the model's dtype.

Linear and Conv2d weights are stored as float8 e4m3 (Micikevicius et al. 2022: 4 exponent and 3 mantissa bits, up to
448) and cast to the compute dtype on each use, so that a layer computes exactly what a plain one with the rounded
weights would. Only for weights that we loaded: a webui's live weights are not changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FP8_DTYPE = torch.float8_e4m3fn
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
"""The formats of fp8 files; fp16 holds every value of both."""
_UNCHANGED = ("conv_in", "conv_out", "time_embedding.", "add_embedding.")
"""A few small layers at both ends, where rounding is most visible."""


class _Fp8Layer:
    """A layer whose `weight` is cast from the stored fp8 tensor on each access."""

    stored: Tensor
    compute_dtype: torch.dtype

    @property
    def weight(self) -> Tensor:
        """The plain layer's weight, rounded to fp8, in the compute dtype."""
        return self.stored.to(self.compute_dtype)


class Fp8Linear(_Fp8Layer, nn.Linear):  # type: ignore[override]  # a property where nn.Linear has a parameter
    """nn.Linear with a weight stored in fp8."""


class Fp8Conv2d(_Fp8Layer, nn.Conv2d):  # type: ignore[override]
    """nn.Conv2d with a weight stored in fp8."""


def store_in_fp8(unet: nn.Module) -> int:
    """Replace the UNet's Linear and Conv2d layers by fp8 ones, in place; returns the bytes saved.

    A layer with weights beyond ±448, which would become infinite, is not changed; Stable Diffusion has none.
    """
    saved = 0
    for name, layer in list(unet.named_modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and not name.startswith(_UNCHANGED):
            fp8_layer = _to_fp8(layer)
            if fp8_layer is not None:
                parent, _, last = name.rpartition(".")
                setattr(unet.get_submodule(parent), last, fp8_layer)
                saved += layer.weight.numel() * (layer.weight.element_size() - FP8_DTYPE.itemsize)
    return saved


def is_fp8(layer: nn.Module) -> bool:
    """Whether the layer's weight is cast on each use; saving the cast weight would waste the memory that fp8 saves."""
    return isinstance(layer, _Fp8Layer)


def _to_fp8(layer: nn.Linear | nn.Conv2d) -> nn.Module | None:
    """The layer with its weight in fp8; None if the weight is out of range."""
    weight = layer.weight.detach()
    if weight.abs().max() > torch.finfo(FP8_DTYPE).max:
        return None
    kind: Any = Fp8Linear if isinstance(layer, nn.Linear) else Fp8Conv2d
    fp8_layer = kind.__new__(kind)
    fp8_layer.__dict__.update(layer.__dict__)  # sizes, stride, padding, mode: everything but the weight
    fp8_layer._parameters = {key: value for key, value in layer._parameters.items() if key != "weight"}
    fp8_layer._buffers = dict(layer._buffers)
    fp8_layer.register_buffer("stored", weight.to(FP8_DTYPE), persistent=False)
    fp8_layer.compute_dtype = weight.dtype
    return fp8_layer  # type: ignore[no-any-return]
