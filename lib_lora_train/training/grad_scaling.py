"""Gradients before the optimiser sees them: their norm, float16's loss scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

_CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_
_AMP_START, _AMP_MOST, _AMP_PATIENCE = 2.0**12, 2.0**16, 1000


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, *, scale: Tensor | None = None) -> Tensor:
    """The norm of all gradients together, 0-d on their device, after dividing them by `scale`.

    Longer ones are shortened to `max_norm` (0: never). If anything in them is not finite, all become 0: the
    optimiser stays sound until the norm is read, which is late, because reading waits for the device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in gradients]))
    factor = torch.ones_like(norm) if scale is None else scale.reciprocal()
    norm = norm * factor
    if max_norm:
        factor = factor * (max_norm / (norm + _CLIP_EPSILON)).clamp(max=1.0)
    factor = torch.where(norm.isfinite(), factor, torch.full_like(factor, torch.nan))
    for gradient in gradients:
        gradient.mul_(factor).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return norm


class GradScaler:
    """Keeps float16 gradients out of underflow (Micikevicius et al. 2018); decides on the device, without waiting.

    The loss is multiplied by `value` (0-d float32) before the backward pass and the gradients divided by it after.
    It is halved when gradients overflow, and doubled after 1000 steps without that.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _AMP_START, device=device)
        self._calm = torch.zeros((), device=device)

    def update(self, norm: Tensor) -> None:
        """Learn from the gradients' norm after a step."""
        finite = norm.isfinite()
        self._calm = torch.where(finite, self._calm + 1, torch.zeros_like(self._calm))
        grown = torch.where(self._calm >= _AMP_PATIENCE, self.value * 2, self.value)
        self.value = torch.where(finite, grown, self.value / 2).clamp(1.0, _AMP_MOST)
        self._calm = torch.where(self._calm >= _AMP_PATIENCE, torch.zeros_like(self._calm), self._calm)

    def state(self) -> dict[str, Tensor]:
        """All it has to remember."""
        return {"value": self.value, "calm": self._calm}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.value = state["value"].to(self.value)
        self._calm = state["calm"].to(self._calm)
