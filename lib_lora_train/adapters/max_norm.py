"""Upper limit on ‖ΔW‖ of each layer ("scale weight norms", max-norm regularisation), and its read-out.

After an optimiser step a longer ΔW is scaled down to the limit by scaling its factors, as kohya does it for LoRA. All
stays on the device: nothing waits for it, layers of one shape are measured together, and all numbers of a buffer are
scaled by one multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lora_train.adapters.adapted_layer import AdaptedLayer
from lib_lora_train.adapters.flat_parameters import FlatBuffer

_TINY = 1e-30


class NormLimit:
    """The limit on `layers`. What never changes is put onto the device once; `apply` launches a few dozen kernels."""

    def __init__(self, layers: Sequence[AdaptedLayer], most: float) -> None:
        self._layers = tuple(layers)
        self._most = most
        buffers = {id(layer.slices.buffer): layer.slices.buffer for layer in layers}
        self._plans = [_Plan.of(buffer, self._layers) for buffer in buffers.values()]
        device = self._plans[0].owners.device
        self._can_shrink = torch.tensor([bool(layer.family.SHRINK) for layer in layers], device=device)

    @torch.no_grad()
    def apply(self) -> Tensor:
        """Scale what is too long; (3,) on the device: layers scaled, average and largest norm after it.

        Families that cannot be scaled keep their length and count in the norms.
        """
        norms = all_norms(self._layers)
        factors = (self._most / norms.clamp_min(_TINY)).clamp(max=1.0)
        factors = torch.where(self._can_shrink, factors, torch.ones_like(factors))
        for plan in self._plans:
            plan.scale(factors)
        after = norms * factors
        return torch.stack([(factors < 1).sum().float(), after.mean(), after.max()])


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which layer's factor, to which power, multiplies each tensor of a buffer."""

    buffer: FlatBuffer
    owners: Tensor
    exponents: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, buffer: FlatBuffer, layers: Sequence[AdaptedLayer]) -> _Plan:
        owners, exponents = [0] * len(buffer.sizes), [0.0] * len(buffer.sizes)
        for number, layer in enumerate(layers):
            if layer.slices.buffer is buffer:
                for name, position in layer.slices.positions.items():
                    owners[position], exponents[position] = number, layer.family.SHRINK.get(name, 0.0)
        device = buffer.parameter.device
        return cls(
            buffer,
            torch.tensor(owners, device=device),
            torch.tensor(exponents, device=device),
            torch.tensor(buffer.sizes, device=device),
        )

    def scale(self, factors: Tensor) -> None:
        """Multiply every tensor of the buffer by its layer's factor to its power."""
        powers = factors[self.owners] ** self.exponents
        numbers = self.buffer.parameter
        numbers.mul_(torch.repeat_interleave(powers, self.sizes, output_size=numbers.numel()))


def all_norms(layers: Sequence[AdaptedLayer]) -> Tensor:
    """‖ΔW‖ of each layer at strength 1, (n,) float32; plain LoRA in batches of equal shapes."""
    groups: dict[tuple[torch.Size, torch.Size, float], list[int]] = {}
    norms: dict[int, Tensor] = {}
    for number, layer in enumerate(layers):
        named = layer.slices.stored()
        if set(named) == {"down", "up"}:
            groups.setdefault((named["down"].shape, named["up"].shape, abs(layer.scale)), []).append(number)
        else:
            norms[number] = layer.diff_norm().float()
    for (_, _, scale), members in groups.items():
        found = _lora_norms([layers[number] for number in members]) * scale
        norms.update(zip(members, found.unbind(), strict=True))
    return torch.stack([norms[number] for number in range(len(layers))])


def _lora_norms(layers: Sequence[AdaptedLayer]) -> Tensor:
    """‖up @ down‖ of n layers of one shape from rank × rank products: tr((upᵀ up)(down downᵀ))."""
    down = torch.stack([layer.slices.stored()["down"].flatten(1) for layer in layers]).float()  # (n, r, i)
    up = torch.stack([layer.slices.stored()["up"].flatten(1) for layer in layers]).float()  # (n, o, r)
    square = ((up.transpose(1, 2) @ up) * (down @ down.transpose(1, 2))).sum((1, 2))
    return square.clamp_min(0).sqrt()
