"""All trainable weights of a group in one parameter, and the slices that layers use.

A UNet has hundreds of LoRA matrices. Optimisers, clipping and zeroing cost a kernel launch (or several) per tensor,
so one long tensor is many times cheaper than 1,444 short ones. The usual ways to do this are wrong or slow:

- Slicing a flat leaf in the forward pass makes autograd build a full-size gradient for every slice.
- Leaf views with a preset `.grad` break silently as soon as an optimiser sets the gradient to None.

Here autograd sees the flat parameter itself: each layer's Function has it as an input, so that its output requires a
gradient, and adds the gradient of its slice directly to the same slice of `parameter.grad`. Autograd does the same for
a leaf, but with temporary copies. Gradients accumulate over micro-batches in the buffer's dtype, whatever the model
computes in, and `optimizer.zero_grad()` may set the gradient to None or to zero.

A model in 16 bit needs the weights in its own dtype and returns gradients in it. Inside `micro_batch`, one kernel casts
all weights, also for the passes that gradient checkpointing repeats, and the gradients are joined and added by two.
The price: `torch.autograd.grad(loss, parameter)` finds nothing; use `loss.backward()`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        self._casts: dict[torch.dtype, tuple[Tensor, list[Tensor]]] = {}
        self._gradient: Tensor | None = None
        self._gradient_slices: list[Tensor] = []
        self._keeps_cast = False
        self._collected: dict[int, Tensor] = {}

    def value(self, position: int, dtype: torch.dtype) -> Tensor:
        """Tensor number `position` in `dtype`: a view if that is the parameter's dtype, else a copy."""
        if dtype == self.parameter.dtype:
            return self._views[position]
        if dtype in self._casts:
            return self._casts[dtype][1][position]
        return self._views[position].to(dtype)

    def can_be_stacked(self, positions: Sequence[int]) -> bool:
        """Whether two or more tensors have one shape and lie at equal distances."""
        starts = [self.starts[position] for position in positions]
        distances = {after - before for before, after in itertools.pairwise(starts)}
        return len(distances) == 1 == len({self.shapes[position] for position in positions})

    def stack(self, positions: Sequence[int], dtype: torch.dtype) -> Tensor:
        """(n, …): tensors that `can_be_stacked`, in `dtype`; a view unless they must be cast one by one."""
        if dtype == self.parameter.dtype:
            return self._stacked_view(self.parameter.detach(), positions)
        if dtype in self._casts:
            return self._stacked_view(self._casts[dtype][0], positions)
        return torch.stack([self.value(position, dtype) for position in positions])

    def gradient(self, position: int) -> Tensor:
        """The slice of `parameter.grad` to add to; a missing gradient is first created or zeroed."""
        self._flat_gradient()
        return self._gradient_slices[position]

    def add_gradient(self, position: int, gradient: Tensor) -> None:
        """Add a gradient of any dtype to the tensor's slice of `parameter.grad`, or do so when `micro_batch` ends."""
        if not self._keeps_cast or gradient.dtype == self.parameter.dtype:
            self.gradient(position).add_(gradient.view(self.shapes[position]))
            return
        if position in self._collected:  # of a second backward pass
            self._add_collected()
        self._collected[position] = gradient

    def add_product(self, position: int, left: Tensor, right: Tensor) -> None:
        """Add the matrix product `left` @ `right` to the gradient; one kernel if they have its dtype."""
        if left.dtype == self.parameter.dtype:
            self.gradient(position).flatten(1).addmm_(left, right)
        else:
            self.add_gradient(position, left @ right)

    def add_products(self, positions: Sequence[int], left: Tensor, right: Tensor) -> None:
        """Add the batched matrix product (n, a, b) of `left` and `right` to the gradients of n tensors of one shape."""
        if left.dtype == self.parameter.dtype:
            self._stacked_view(self._flat_gradient(), positions).baddbmm_(left, right)
        else:
            for position, gradient in zip(positions, torch.bmm(left, right), strict=True):
                self.add_gradient(position, gradient)

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Inside are forward and backward passes with unchanged weights: one cast serves all of them.

        Gradients of another dtype than the parameter's are added together at the end; an exception discards them.
        """
        self._keeps_cast = True
        try:
            yield
            self._add_collected()
        finally:
            self._keeps_cast = False
            self._collected.clear()
            self.end_cast()

    def begin_cast(self, dtype: torch.dtype) -> None:
        """Cast everything in one kernel; until `end_cast`, `value` in `dtype` is free.

        The copy must not outlive one forward pass, or `micro_batch`: optimisers change only the parameter.
        """
        if dtype != self.parameter.dtype and dtype not in self._casts:
            flat = self.parameter.detach().to(dtype)
            self._casts[dtype] = flat, self._split(flat)

    def end_cast(self) -> None:
        """Free the copy that `begin_cast` made, unless `micro_batch` keeps it."""
        if not self._keeps_cast:
            self._casts.clear()

    def _add_collected(self) -> None:
        """Add the collected gradients, with zeros where there is none."""
        if not self._collected:
            return
        some = next(iter(self._collected.values()))
        parts = [
            self._collected[position].flatten() if position in self._collected else some.new_zeros(size)
            for position, size in enumerate(self.sizes)
        ]
        self._collected.clear()
        self._flat_gradient().add_(torch.cat(parts))

    def _flat_gradient(self) -> Tensor:
        """`parameter.grad`, created or zeroed if there is none."""
        flat = self.parameter.grad
        if flat is None:
            flat = self._zero_gradient()
        if flat is not self._gradient:
            self._gradient, self._gradient_slices = flat, self._split(flat)
        return flat

    def _zero_gradient(self) -> Tensor:
        """A zero gradient, in the previous one's storage if there is one."""
        zero = torch.zeros_like(self.parameter) if self._gradient is None else self._gradient.zero_()
        self.parameter.grad = zero
        return zero

    def _stacked_view(self, flat: Tensor, positions: Sequence[int]) -> Tensor:
        """(n, …) of `flat`, which is laid out like the parameter."""
        first, second, *_ = (self.starts[position] for position in positions)
        shape = self.shapes[positions[0]]
        strides = (second - first, *self._views[positions[0]].stride())
        return flat.as_strided((len(positions), *shape), strides, flat.storage_offset() + first)

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
        """Add a gradient of any dtype to that of the tensor called `name`."""
        self.buffer.add_gradient(self.positions[name], gradient)

    def add_product(self, name: str, left: Tensor, right: Tensor) -> None:
        """Add the matrix product `left` @ `right` to the gradient of the tensor called `name`."""
        self.buffer.add_product(self.positions[name], left, right)
