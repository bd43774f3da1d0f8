"""Gradients before the optimiser sees them: clipping, and float16's loss scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_
_INITIAL_SCALE, _MAX_SCALE, _GROWTH_INTERVAL = 2.0**12, 2.0**16, 1000


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, *, scale: Tensor | None = None) -> Tensor:
    """The norm of all gradients together, 0-d on their device, after dividing them by `scale`.

    Longer ones are shortened to `max_norm` (0: never). If any of them is not finite, all become 0: that keeps the
    optimiser sound until the norm is read, which is late, because reading waits for the device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in gradients]))
    factor = torch.ones_like(norm) if scale is None else scale.reciprocal()
    norm = norm * factor
    if max_norm:
        factor = factor * (max_norm / (norm + _CLIP_EPSILON)).clamp(max=1.0)
    factor = torch.where(norm.isfinite(), factor, torch.full_like(factor, torch.nan))
    for gradient in gradients:
        gradient.mul_(factor).nan_to_num_(nan=0.0)  # the factor is NaN then, and so is every number
    return norm


class GradScaler:
    """Keeps float16 gradients from underflowing (Micikevicius et al. 2018); decides on the device, without waiting.

    The loss is multiplied by `value` (0-d float32) before the backward pass and the gradients are divided by it after.
    It is halved when gradients overflow, and doubled after 1000 steps without an overflow.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _INITIAL_SCALE, device=device)
        self._growth_tracker = torch.zeros((), device=device)

    def update(self, norm: Tensor) -> None:
        """Adapt the scale to the gradients' norm after a step."""
        finite = norm.isfinite()
        tracker = torch.where(finite, self._growth_tracker + 1, torch.zeros_like(self._growth_tracker))
        grown = torch.where(tracker >= _GROWTH_INTERVAL, self.value * 2, self.value)
        self.value = torch.where(finite, grown, self.value / 2).clamp(1.0, _MAX_SCALE)
        self._growth_tracker = torch.where(tracker >= _GROWTH_INTERVAL, torch.zeros_like(tracker), tracker)

    def state(self) -> dict[str, Tensor]:
        """What `load_state` needs; tensors are not copied."""
        return {"value": self.value, "calm": self._growth_tracker}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self.value = state["value"].to(self.value)
        self._growth_tracker = state["calm"].to(self._growth_tracker)
