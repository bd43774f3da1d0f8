"""A tensor that behaves as comfy-kitchen's `QuantizedTensor` does: its dtype and shape are not those of its storage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class PackedTensor(Tensor):
    """int8 numbers with one scale, which say that they are bfloat16; every computation unpacks them first."""

    _qdata: Tensor
    _scale: Tensor

    @staticmethod
    def __new__(cls, packed: Tensor, scale: Tensor, dtype: torch.dtype) -> PackedTensor:
        wrapper: PackedTensor = Tensor._make_wrapper_subclass(cls, packed.shape, dtype=dtype, device=packed.device)
        wrapper._qdata, wrapper._scale = packed, scale
        return wrapper

    def __init__(self, packed: Tensor, scale: Tensor, dtype: torch.dtype) -> None: ...

    @classmethod
    def pack(cls, tensor: Tensor, dtype: torch.dtype = torch.bfloat16) -> PackedTensor:
        scale = tensor.abs().max() / 127
        return cls((tensor / scale).round().to(torch.int8), scale, dtype)

    def dequantize(self) -> Tensor:
        return (self._qdata.float() * self._scale).to(self.dtype)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PackedTensor(shape={tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            same = args[0]
            return cls(func(same._qdata), same._scale, same.dtype)
        unpacked = tree_map(lambda value: value.dequantize() if isinstance(value, cls) else value, (args, kwargs or {}))
        return func(*unpacked[0], **unpacked[1])
