"""Upper limit on each layer's ‖ΔW‖ (kohya's scale_weight_norms, max-norm regularisation), and the norms themselves.

After an optimiser step a longer ΔW is scaled down to the limit by scaling its factors, as kohya does for LoRA.
Everything stays on the device without synchronising: layers of one shape are measured together, and each buffer is
scaled by one multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.flat_parameters import FlatBuffer


class NormLimit:
    """The limit on `layers`. Constants are moved to the device once; `apply` launches a few dozen kernels."""

    def __init__(self, layers: Sequence[AdaptedLayer], max_norm: float) -> None:
        self._layers = tuple(layers)
        self._max_norm = max_norm
        buffers = {id(layer.slices.buffer): layer.slices.buffer for layer in layers}
        self._scalings = [_BufferScaling.create(buffer, self._layers) for buffer in buffers.values()]
        device = self._scalings[0].owners.device
        self._can_scale = torch.tensor([bool(layer.family.SCALE_EXPONENTS) for layer in layers], device=device)

    @torch.no_grad()
    def apply(self) -> Tensor:
        """Scale down what is too long; (3,) on the device: layers scaled, average and largest norm afterwards.

        Families that cannot be scaled keep their norm and are included in the average and maximum.
        """
        norms = delta_norms(self._layers)
        factors = (self._max_norm / norms).clamp(max=1.0)  # 1 for a norm of 0
        factors = torch.where(self._can_scale, factors, torch.ones_like(factors))
        for scaling in self._scalings:
            scaling.apply(factors)
        after = norms * factors
        return torch.stack([(factors < 1).sum().float(), after.mean(), after.max()])


@dataclass(frozen=True, eq=False)
class _BufferScaling:
    """Per tensor of a buffer: the layer whose factor multiplies it, the factor's exponent, the tensor's size."""

    buffer: FlatBuffer
    owners: Tensor
    exponents: Tensor
    sizes: Tensor

    @classmethod
    def create(cls, buffer: FlatBuffer, layers: Sequence[AdaptedLayer]) -> _BufferScaling:
        owners, exponents = [0] * len(buffer.sizes), [0.0] * len(buffer.sizes)
        for number, layer in enumerate(layers):
            if layer.slices.buffer is buffer:
                for name, position in layer.slices.positions.items():
                    owners[position], exponents[position] = number, layer.family.SCALE_EXPONENTS.get(name, 0.0)
        device = buffer.parameter.device
        return cls(
            buffer,
            torch.tensor(owners, device=device),
            torch.tensor(exponents, device=device),
            torch.tensor(buffer.sizes, device=device),
        )

    def apply(self, factors: Tensor) -> None:
        """Multiply each tensor of the buffer by its layer's factor, raised to its exponent."""
        powers = factors[self.owners] ** self.exponents
        flat = self.buffer.parameter
        flat.mul_(torch.repeat_interleave(powers, self.sizes, output_size=flat.numel()))


def delta_norms(layers: Sequence[AdaptedLayer]) -> Tensor:
    """‖ΔW‖ of each layer at strength 1, (n,) float32; plain LoRA layers of one shape are computed together."""
    groups: dict[tuple[torch.Size, torch.Size, float], list[int]] = {}
    norms: dict[int, Tensor] = {}
    for number, layer in enumerate(layers):
        tensors = layer.slices.tensors()
        if set(tensors) == {"down", "up"}:
            groups.setdefault((tensors["down"].shape, tensors["up"].shape, abs(layer.scale)), []).append(number)
        else:
            norms[number] = layer.diff_norm().float()
    for (_, _, scale), members in groups.items():
        found = _lora_norms([layers[number] for number in members]) * scale
        norms.update(zip(members, found.unbind(), strict=True))
    return torch.stack([norms[number] for number in range(len(layers))])


def _lora_norms(layers: Sequence[AdaptedLayer]) -> Tensor:
    """‖up @ down‖ of n layers of one shape, from rank × rank products: tr((upᵀ up)(down downᵀ))."""
    down = torch.stack([layer.slices.tensors()["down"].flatten(1) for layer in layers]).float()  # (n, r, i)
    up = torch.stack([layer.slices.tensors()["up"].flatten(1) for layer in layers]).float()  # (n, o, r)
    square = ((up.transpose(1, 2) @ up) * (down @ down.transpose(1, 2))).sum((1, 2))
    return square.clamp_min(0).sqrt()
