"""A tensor that behaves as comfy-kitchen's `QuantizedTensor` does: its dtype and shape are not those of its storage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of a 4-bit float without its sign."""
_BLOCK = 16
FORMATS = ("int8", "fp8", "nvfp4")


class PackedTensor(Tensor):
    """Packed numbers with scales, which say that they are bfloat16; every computation unpacks them first.

    int8 and fp8 have one scale. nvfp4 packs two numbers into a byte and has an fp8 scale for each 16.
    """

    _qdata: Tensor
    _scale: Tensor

    @staticmethod
    def __new__(cls, packed: Tensor, scale: Tensor, dtype: torch.dtype) -> PackedTensor:
        shape = (*packed.shape[:-1], packed.shape[-1] * (2 if packed.dtype == torch.uint8 else 1))
        wrapper: PackedTensor = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=packed.device)
        wrapper._qdata, wrapper._scale = packed, scale
        return wrapper

    def __init__(self, packed: Tensor, scale: Tensor, dtype: torch.dtype) -> None: ...

    @classmethod
    def pack(cls, tensor: Tensor, form: str = "int8", dtype: torch.dtype = torch.bfloat16) -> PackedTensor:
        if form == "nvfp4" and tensor.shape[-1] % _BLOCK == 0:
            return cls(*_packed_in_4_bits(tensor.float()), dtype)
        if form == "int8":
            scale = tensor.abs().max() / 127
            return cls((tensor / scale).round().to(torch.int8), scale, dtype)
        scale = tensor.abs().max() / 448
        return cls((tensor / scale).to(torch.float8_e4m3fn), scale, dtype)

    def dequantize(self) -> Tensor:
        if self._qdata.dtype == torch.uint8:
            return _unpacked_from_4_bits(self._qdata, self._scale).to(self.dtype)
        return (self._qdata.float() * self._scale).to(self.dtype)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_qdata", "_scale"], None

    @property
    def held_bytes(self) -> int:
        return self._qdata.nbytes + self._scale.nbytes

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PackedTensor(shape={tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            same = args[0]
            return cls(func(same._qdata), same._scale, same.dtype)
        unpacked = tree_map(lambda value: value.dequantize() if isinstance(value, cls) else value, (args, kwargs or {}))
        return func(*unpacked[0], **unpacked[1])


def _packed_in_4_bits(tensor: Tensor) -> tuple[Tensor, Tensor]:
    blocks = tensor.reshape(*tensor.shape[:-1], -1, _BLOCK)
    scale = (blocks.abs().amax(-1, keepdim=True) / _E2M1[-1]).clamp_min(2.0**-9).to(torch.float8_e4m3fn)
    ratio = blocks / scale.float()
    codes = (ratio.abs()[..., None] - torch.tensor(_E2M1)).abs().argmin(-1) + 8 * (ratio < 0)
    pairs = codes.reshape(*tensor.shape[:-1], -1, 2).to(torch.uint8)
    return pairs[..., 0] * 16 + pairs[..., 1], scale


def _unpacked_from_4_bits(packed: Tensor, scale: Tensor) -> Tensor:
    codes = torch.stack((packed // 16, packed % 16), -1).flatten(-2).long()
    values = torch.tensor(_E2M1)[codes % 8] * (1 - 2 * (codes // 8))
    return (values.reshape(*scale.shape[:-1], _BLOCK) * scale.float()).reshape(codes.shape)
