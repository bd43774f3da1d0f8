"""Optimisers over the adapter's groups: one interface for those with and without a learning rate of their own.

Every group (`unet`, `text_encoder`…) has its own learning rate. AdamW takes them as they are. Prodigy estimates
one distance d from all gradients and refuses unlike learning rates; see `SharedDistance` for what is done instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lib_lora_train.config import TrainConfig
from lib_lora_train.errors import ConfigError, Problem

Groups = Mapping[str, Sequence[nn.Parameter]]
_CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_
_AMP_START, _AMP_MOST, _AMP_PATIENCE = 2.0**12, 2.0**16, 1000


class Stepper(Protocol):
    """An optimiser over named groups."""

    def step(self, factor: float) -> None:
        """Take one step with every learning rate times `factor`, from the gradients as they are, and forget these."""

    def take_over(self) -> None:
        """Go on from the parameters as they are now, after others have changed them between two steps."""

    def effective_rates(self) -> dict[str, float]:
        """By group, the learning rate of the last step: d·lr for an adaptive optimiser."""

    def state(self) -> dict[str, Any]:
        """All it has to remember; tensors are not copied."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""


def group_rates(config: TrainConfig, names: Sequence[str]) -> dict[str, float]:
    """Learning rate by group: `unet_lr`, `text_encoder_lr`, or the general one where they are not set."""
    own = {name: config.unet_lr if name == "unet" else config.text_encoder_lr for name in names}
    return {name: config.learning_rate if rate is None else rate for name, rate in own.items()}


def make_stepper(groups: Groups, rates: Mapping[str, float], *, kind: str, arguments: Mapping[str, Any]) -> Stepper:
    """The optimiser `kind` with the guides' `arguments`; a group of learning rate 0 is frozen.

    ConfigError if no group is left, an argument is not the optimiser's, or its package is missing.
    """
    for name, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(rates[name] > 0)
    live = {name: list(parameters) for name, parameters in groups.items() if rates[name] > 0}
    if not live:
        raise _refusal("learning_rate", "is 0 for everything that would be trained. Give at least one part a rate.")
    if kind == "Prodigy":
        return SharedDistance(live, rates, arguments)
    return OwnRates(live, rates, arguments)


class OwnRates:
    """AdamW (Loshchilov & Hutter 2019), every group at its own learning rate."""

    def __init__(self, groups: Groups, rates: Mapping[str, float], arguments: Mapping[str, Any]) -> None:
        self._rates = {name: rates[name] for name in groups}
        on_cuda = all(p.is_cuda for parameters in groups.values() for p in parameters)
        given = {"fused": True, **arguments} if on_cuda else arguments
        params = [{"params": list(parameters), "lr": rates[name]} for name, parameters in groups.items()]
        self._optimizer = _built(torch.optim.AdamW, params, given)

    def step(self, factor: float) -> None:
        """See `Stepper`."""
        for group, rate in zip(self._optimizer.param_groups, self._rates.values(), strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def take_over(self) -> None:
        """See `Stepper`; nothing is kept of them here."""

    def effective_rates(self) -> dict[str, float]:
        """See `Stepper`."""
        return {name: float(g["lr"]) for name, g in zip(self._rates, self._optimizer.param_groups, strict=True)}

    def state(self) -> dict[str, Any]:
        """See `Stepper`."""
        return {"optimizer": self._optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Stepper`."""
        self._optimizer.load_state_dict(state["optimizer"])


class SharedDistance:
    """Prodigy (Mishchenko & Defazio 2023) with one distance d for all groups, and learning rates in any ratio.

    Prodigy's d is the distance to the solution in *one* space, so all groups must move by the same rule.
    A group whose rate is r times the highest is therefore optimised in coordinates φ = θ / r: its gradient
    is r ∂L/∂θ, and a step of φ by d·lr is a step of θ by r·d·lr. The estimate of d stays Prodigy's own,
    and with equal rates (r = 1) this is plain Prodigy on one group.
    """

    def __init__(self, groups: Groups, rates: Mapping[str, float], arguments: Mapping[str, Any]) -> None:
        self._rate = max(rates[name] for name in groups)
        self._ratios = {name: rates[name] / self._rate for name in groups}
        self._pairs = [(p, _scaled(p, self._ratios[name]), self._ratios[name]) for name in groups for p in groups[name]]
        params = [{"params": [scaled for _, scaled, _ in self._pairs], "lr": self._rate}]
        self._optimizer = _built(_prodigy_class(), params, arguments)

    def step(self, factor: float) -> None:
        """See `Stepper`."""
        self._optimizer.param_groups[0]["lr"] = self._rate * factor
        for parameter, scaled, ratio in self._pairs:
            if scaled is not parameter:
                scaled.grad = None if parameter.grad is None else parameter.grad * ratio
        self._optimizer.step()
        for parameter, scaled, ratio in self._pairs:
            if scaled is not parameter:
                with torch.no_grad():
                    torch.mul(scaled, ratio, out=parameter)
            parameter.grad = scaled.grad = None

    def take_over(self) -> None:
        """See `Stepper`."""
        with torch.no_grad():
            for parameter, scaled, ratio in self._pairs:
                if scaled is not parameter:
                    torch.div(parameter, ratio, out=scaled)

    def effective_rates(self) -> dict[str, float]:
        """See `Stepper`."""
        group = self._optimizer.param_groups[0]
        return {name: float(group["d"]) * float(group["lr"]) * ratio for name, ratio in self._ratios.items()}

    def state(self) -> dict[str, Any]:
        """See `Stepper`."""
        return {"optimizer": self._optimizer.state_dict(), "scaled": [scaled.detach() for _, scaled, _ in self._pairs]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Stepper`."""
        self._optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for (_, scaled, _), saved in zip(self._pairs, state["scaled"], strict=True):
                scaled.copy_(saved)


def _scaled(parameter: nn.Parameter, ratio: float) -> nn.Parameter:
    return parameter if ratio == 1 else nn.Parameter(parameter.detach() / ratio)


def _prodigy_class() -> Any:
    try:
        from prodigyopt import Prodigy
    except ImportError:
        problem = "Prodigy needs the package prodigyopt. Install it (pip install prodigyopt), or choose AdamW."
        raise _refusal("optimizer", problem) from None
    return Prodigy


def _built(kind: Any, params: list[dict[str, Any]], arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
    known = [name for name in inspect.signature(kind).parameters if name not in ("params", "lr")]
    unknown = [name for name in arguments if name not in known]
    if unknown:
        message = f"{kind.__name__} has no argument {', '.join(unknown)}. It knows {', '.join(known)}."
        raise _refusal("optimizer_args", message)
    try:
        optimizer: torch.optim.Optimizer = kind(params, **arguments)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise _refusal("optimizer_args", f"{kind.__name__} refuses them: {reason}") from reason
    return optimizer


def _refusal(where: str, message: str) -> ConfigError:
    return ConfigError([Problem("error", where, message)])


# --- gradients ----------------------------------------------------------------------------------


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


class LossScale:
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
