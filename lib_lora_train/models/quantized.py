"""Quantised tensors as Forge Neo and ComfyUI keep them: comfy-kitchen's `QuantizedTensor` and others of its kind.

Such a tensor is a wrapper: `dtype` and `shape` are those it computes in (bfloat16), while its numbers, of 4 or 8 bits
with scales, are in tensors inside it. It has no storage to share, so training needs unpacked copies.
"""

from __future__ import annotations

from torch import Tensor


def is_quantized(tensor: Tensor) -> bool:
    """Whether this is a wrapper around packed numbers, whatever its dtype says.

    PyTorch's protocol for wrappers is `__tensor_flatten__`; comfy-kitchen keeps the numbers in `_qdata`.
    """
    return hasattr(type(tensor), "__tensor_flatten__") or hasattr(tensor, "_qdata")


def dequantized(tensor: Tensor) -> Tensor:
    """The numbers that the tensor stands for, in its `dtype`, in new memory."""
    return tensor.dequantize().to(tensor.dtype).contiguous()


def packed_dtype(tensor: Tensor) -> str:
    """What the numbers are packed in, such as `float8_e4m3fn`; "quantised" if the wrapper does not say."""
    packed = getattr(tensor, "_qdata", None)
    return str(packed.dtype).removeprefix("torch.") if isinstance(packed, Tensor) else "quantised"


def packed_bytes(tensor: Tensor) -> int:
    """The memory that the packed numbers take, with their scales; `Tensor.nbytes` counts those it stands for."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    names = flatten()[0] if flatten else ["_qdata"]
    inner = [getattr(tensor, name, None) for name in names]
    return sum(part.numel() * part.element_size() for part in inner if isinstance(part, Tensor))
