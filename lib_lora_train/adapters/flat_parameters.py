"""All trainable weights of a group in one parameter, and the slices that layers use.

A UNet has hundreds of LoRA matrices. Optimisers, clipping and zeroing cost a kernel launch (or several) per tensor,
so one long tensor is many times cheaper than 1,444 short ones. The usual ways to do this are wrong or slow:

- Slicing a flat leaf in the forward pass makes autograd build a full-size gradient for every slice.
- Leaf views with a preset `.grad` break silently as soon as an optimiser sets the gradient to None.

Here autograd sees the flat parameter itself: each layer's Function has it as an input, so that its output requires a
gradient, and adds the gradient of its slice directly to the same slice of `parameter.grad`. Autograd does the same for
a leaf, but with temporary copies. Gradients accumulate over micro-batches in the buffer's dtype, whatever the model
computes in, and `optimizer.zero_grad()` may set the gradient to None or to zero.
The price: `torch.autograd.grad(loss, parameter)` finds nothing; use `loss.backward()`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class FlatBuffer:
    """One parameter that concatenates many tensors, fp32 unless `dtype` says otherwise.

    `parameter` is the leaf. A tensor is addressed by its position in `tensors`; `shapes`, `sizes` (numbers of elements)
    and `starts` (offset of the first element) have one entry for each tensor.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device, *, dtype: torch.dtype = torch.float32) -> None:
        self.shapes = [tensor.shape for tensor in tensors]
        self.sizes = [tensor.numel() for tensor in tensors]
        self.starts = [0, *itertools.accumulate(self.sizes)][:-1]
        flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
        self.parameter = nn.Parameter(flat.to(device, dtype))
        self._views = self._split(self.parameter.detach())
        self._casts: dict[torch.dtype, list[Tensor]] = {}
        self._gradient: Tensor | None = None
        self._gradient_slices: list[Tensor] = []

    def value(self, position: int, dtype: torch.dtype) -> Tensor:
        """Tensor number `position` in `dtype`: a view if that is the parameter's dtype, else a copy."""
        if dtype == self.parameter.dtype:
            return self._views[position]
        if dtype in self._casts:
            return self._casts[dtype][position]
        return self._views[position].to(dtype)

    def gradient(self, position: int) -> Tensor:
        """The slice of `parameter.grad` to add to; a missing gradient is first created or zeroed."""
        flat = self.parameter.grad
        if flat is None:
            flat = self._zero_gradient()
        if flat is not self._gradient:
            self._gradient, self._gradient_slices = flat, self._split(flat)
        return self._gradient_slices[position]

    def begin_cast(self, dtype: torch.dtype) -> None:
        """Cast everything in one kernel; until `end_cast`, `value` in `dtype` is free.

        The copy must not outlive one forward pass: optimisers change only the parameter.
        """
        if dtype != self.parameter.dtype:
            self._casts[dtype] = self._split(self.parameter.detach().to(dtype))

    def end_cast(self) -> None:
        """Free the copy that `begin_cast` made."""
        self._casts.clear()

    def _zero_gradient(self) -> Tensor:
        """A zero gradient, in the previous one's storage if there is one."""
        zero = torch.zeros_like(self.parameter) if self._gradient is None else self._gradient.zero_()
        self.parameter.grad = zero
        return zero

    def _split(self, flat: Tensor) -> list[Tensor]:
        parts = torch.split(flat, self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


@dataclass(frozen=True)
class Slices:
    """One layer's tensors in a `FlatBuffer`, by the family's short names, in order."""

    buffer: FlatBuffer
    positions: Mapping[str, int]

    @property
    def anchor(self) -> nn.Parameter:
        """The leaf that must be an input of every Function that adds to `gradient`."""
        return self.buffer.parameter

    def value(self, name: str, dtype: torch.dtype) -> Tensor:
        """One tensor in `dtype`, outside of autograd."""
        return self.buffer.value(self.positions[name], dtype)

    def values(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The tensors in `dtype`, outside of autograd."""
        return tuple(self.buffer.value(position, dtype) for position in self.positions.values())

    def fp32(self) -> dict[str, Tensor]:
        """The tensors in fp32, outside of autograd; not for writing."""
        return dict(zip(self.positions, self.values(torch.float32), strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """Views of the tensors in the buffer's dtype; writing to them under `no_grad` changes the layer."""
        return dict(zip(self.positions, self.values(self.anchor.dtype), strict=True))

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        """Add a gradient of any dtype to the tensor's slice of `parameter.grad`."""
        self.buffer.gradient(self.positions[name]).add_(gradient)

    def add_product(self, name: str, left: Tensor, right: Tensor) -> None:
        """Add the matrix product `left` @ `right` to the gradient; one kernel if they have its dtype."""
        target = self.buffer.gradient(self.positions[name])
        if left.dtype == target.dtype:
            target.addmm_(left, right)
        else:
            target.add_(left @ right)
