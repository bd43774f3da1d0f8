"""Optimisers over the adapter's groups: one interface for those with and without a learning rate of their own.

Every group (`unet`, `text_encoder`…) has its own learning rate. AdamW and its like take them as they are. Prodigy and
D-Adaptation estimate one distance d from all gradients and refuse unlike learning rates; `SharedDistanceOptimizer`
says what is done instead.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.optimizer_catalog import CUSTOM, KINDS, OptimizerKind, takes_own_schedule
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError, Problem

Groups = Mapping[str, Sequence[nn.Parameter]]
Maker = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Makes an optimiser of parameter groups with their learning rates."""

_RELATIVE_MOST, _RELATIVE_WARMUP = 1e-2, 1e-6  # Shazeer & Stern 2018, section 8: the step sizes ρ_t
_CLASS_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class Optimizer(Protocol):
    """An optimiser over named groups."""

    def step(self, factor: float) -> None:
        """Take one step with every learning rate times `factor`, from the gradients as they are, and forget these."""

    def take_over(self) -> None:
        """Go on from the parameters as they are now, after others have changed them between two steps."""

    def effective_rates(self) -> dict[str, float]:
        """By group, the learning rate of the last step: d·lr for an adaptive optimiser."""

    def set_train(self, on: bool) -> None:
        """Bring the weights for training, or those for use, into the parameters; most optimisers have one kind only."""

    def state(self) -> dict[str, Any]:
        """All it has to remember; tensors are not copied."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""


def group_rates(config: TrainConfig, names: Sequence[str]) -> dict[str, float]:
    """Learning rate by group: its own one, or the general one where it is not set.

    The second text encoder's is the first one's where it is not set.
    """
    text = config.text_encoder_lr
    second = text if config.text_encoder_2_lr is None else config.text_encoder_2_lr
    own = {name: {"unet": config.unet_lr, "text_encoder_2": second}.get(name, text) for name in names}
    return {name: config.learning_rate if rate is None else rate for name, rate in own.items()}


def make_stepper(groups: Groups, rates: Mapping[str, float], *, config: TrainConfig) -> Optimizer:
    """The optimiser that the settings name; a group of learning rate 0 is frozen.

    ConfigError if no group is left, an argument is not the optimiser's, or its package is missing.
    """
    for name, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(rates[name] > 0)
    live = {name: list(parameters) for name, parameters in groups.items() if rates[name] > 0}
    if not live:
        raise _refusal("learning_rate", "is 0 for everything that would be trained. Give at least one part a rate.")
    built = _class_of(config, KINDS[config.optimizer])
    arguments = _arguments(config, live)

    def make(params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if takes_own_schedule(config.optimizer, config.lr_schedule):
            params = [{**group, "lr": None} for group in params]
        return _built(built, params, arguments)

    if finds_rate(config.optimizer, built):
        return SharedDistanceOptimizer(live, rates, make)
    if takes_own_schedule(config.optimizer, config.lr_schedule):
        return OwnSteps(live, make)
    return PlainOptimizer(live, rates, make)


def finds_rate(optimizer: str, built: Any) -> bool:
    """Whether it estimates the rate: told for those on the list, else by its argument d0, where the estimate begins.

    So do all of the Prodigy and D-Adaptation families.
    """
    return KINDS[optimizer].finds_rate or "d0" in inspect.signature(built).parameters


def _arguments(config: TrainConfig, groups: Groups) -> dict[str, Any]:
    """The optimiser's arguments: those given, over what its name says and the training needs."""
    given = parse_optimizer_args(config.optimizer_args)
    own_steps = takes_own_schedule(config.optimizer, config.lr_schedule)
    on_cuda = all(p.is_cuda for parameters in groups.values() for p in parameters)
    defaults: dict[str, dict[str, Any]] = {
        "AdamW": {"fused": True} if on_cuda else {},
        "SGDNesterov": {"momentum": 0.9, "nesterov": True},
        "Adafactor": {"relative_step": own_steps, "scale_parameter": own_steps},
    }
    return {**defaults.get(config.optimizer, {}), **given}


class PlainOptimizer:
    """Every group at its own learning rate."""

    def __init__(self, groups: Groups, rates: Mapping[str, float], make: Maker) -> None:
        self._rates = {name: rates[name] for name in groups}
        self._optimizer = make([{"params": list(group), "lr": rates[name]} for name, group in groups.items()])
        _set_train(self._optimizer, True)

    def step(self, factor: float) -> None:
        """See `Optimizer`."""
        for group, rate in zip(self._optimizer.param_groups, self._rates.values(), strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def take_over(self) -> None:
        """See `Optimizer`; nothing is kept of them here."""

    def effective_rates(self) -> dict[str, float]:
        """See `Optimizer`; schedule-free optimisers have a warm-up of their own, which they tell as `scheduled_lr`."""
        groups = zip(self._rates, self._optimizer.param_groups, strict=True)
        return {name: float(group.get("scheduled_lr", group["lr"])) for name, group in groups}

    def set_train(self, on: bool) -> None:
        """See `Optimizer`."""
        _set_train(self._optimizer, on)

    def state(self) -> dict[str, Any]:
        """See `Optimizer`."""
        return {"optimizer": self._optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Optimizer`."""
        self._optimizer.load_state_dict(state["optimizer"])


class OwnSteps(PlainOptimizer):
    """Adafactor with relative steps (Shazeer & Stern 2018, section 8): no learning rate is given at all."""

    def __init__(self, groups: Groups, make: Maker) -> None:
        super().__init__(groups, dict.fromkeys(groups, 0.0), make)

    def step(self, factor: float) -> None:  # noqa: ARG002  its schedule is its own
        """See `Optimizer`."""
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def effective_rates(self) -> dict[str, float]:
        """The relative step size ρ_t; with `scale_parameter` each matrix multiplies it by its own size."""
        rates = {}
        for name, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            step = self._optimizer.state.get(group["params"][0], {}).get("step", 1)
            most = _RELATIVE_WARMUP * step if group["warmup_init"] else _RELATIVE_MOST
            rates[name] = float(min(most, step**-0.5))
        return rates


class SharedDistanceOptimizer:
    """Prodigy (Mishchenko & Defazio 2023) or D-Adaptation (Defazio & Mishchenko 2023): one distance d for all groups,
    and learning rates in any ratio.

    d is the distance to the solution in *one* space, so all groups must move by the same rule.
    A group whose rate is r times the highest is therefore optimised in coordinates φ = θ / r: its gradient
    is r ∂L/∂θ, and a step of φ by d·lr is a step of θ by r·d·lr. The estimate of d stays the
    optimiser's own, and with equal rates (r = 1) this is the plain optimiser on one group.
    """

    def __init__(self, groups: Groups, rates: Mapping[str, float], make: Maker) -> None:
        self._rate = max(rates[name] for name in groups)
        self._ratios = {name: rates[name] / self._rate for name in groups}
        self._pairs = [(p, _scaled(p, self._ratios[name]), self._ratios[name]) for name in groups for p in groups[name]]
        params = [{"params": [scaled for _, scaled, _ in self._pairs], "lr": self._rate}]
        self._optimizer = make(params)

    def step(self, factor: float) -> None:
        """See `Optimizer`."""
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
        """See `Optimizer`."""
        with torch.no_grad():
            for parameter, scaled, ratio in self._pairs:
                if scaled is not parameter:
                    torch.div(parameter, ratio, out=scaled)

    def effective_rates(self) -> dict[str, float]:
        """See `Optimizer`."""
        group = self._optimizer.param_groups[0]
        return {name: float(group.get("d", 1.0)) * float(group["lr"]) * ratio for name, ratio in self._ratios.items()}

    def set_train(self, on: bool) -> None:
        """See `Optimizer`."""
        _set_train(self._optimizer, on)

    def state(self) -> dict[str, Any]:
        """See `Optimizer`."""
        return {"optimizer": self._optimizer.state_dict(), "scaled": [scaled.detach() for scaled in self._own()]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Optimizer`."""
        self._optimizer.load_state_dict(state["optimizer"])
        own = self._own()
        given = state["scaled"]
        if len(given) != len(own):  # older states hold all groups' numbers
            given = [saved for saved, (p, scaled, _) in zip(given, self._pairs, strict=True) if scaled is not p]
        with torch.no_grad():
            for scaled, saved in zip(own, given, strict=True):
                scaled.copy_(saved)

    def _own(self) -> list[nn.Parameter]:
        """The numbers that are not the parameters themselves."""
        return [scaled for parameter, scaled, _ in self._pairs if scaled is not parameter]


def _scaled(parameter: nn.Parameter, ratio: float) -> nn.Parameter:
    return parameter if ratio == 1 else nn.Parameter(parameter.detach() / ratio)


def _set_train(optimizer: torch.optim.Optimizer, on: bool) -> None:
    """Switch a schedule-free optimiser, known by its two methods; others have nothing to switch."""
    switch = getattr(optimizer, "train" if on else "eval", None)
    if callable(switch):
        switch()


# --- making one -----------------------------------------------------------------------------------


def _class_of(config: TrainConfig, kind: OptimizerKind) -> Any:
    """The optimiser's class; ConfigError that says what to install, or why it cannot be used."""
    if config.optimizer == CUSTOM:
        return _custom_class(config.custom_optimizer)
    module, _, name = kind.origin.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as reason:
        package = kind.package or module
        text = f"{config.optimizer} needs the package {package} ({reason}). Install it: pip install {package}"
        raise _refusal("optimizer", f"{text}, or choose AdamW.") from None


def _custom_class(name: str) -> Any:
    """The class that `package.Class` names; nothing but an optimiser is ever made from it."""
    if not _CLASS_NAME.fullmatch(name):
        raise _refusal("custom_optimizer", f"{name!r} is not of the form package.Class.")
    module, _, last = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError) as reason:
        text = f"{name} cannot be found ({reason}). Install its package with pip, or correct the name."
        raise _refusal("custom_optimizer", text) from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise _refusal("custom_optimizer", f"{name} is no optimiser of PyTorch (torch.optim.Optimizer).")
    return found


def _built(kind: Any, params: list[dict[str, Any]], arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
    signature = inspect.signature(kind).parameters
    known = [name for name in signature if name not in ("params", "lr")]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    unknown = [] if takes_any else [name for name in arguments if name not in known]
    if unknown:
        message = f"{kind.__name__} has no argument {', '.join(unknown)}. It knows {', '.join(known)}."
        raise _refusal("optimizer_args", message)
    try:
        optimizer: torch.optim.Optimizer = kind(params, lr=params[0]["lr"], **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as reason:
        raise _refusal("optimizer_args", f"{kind.__name__} refuses them: {reason}") from reason
    return optimizer


def _refusal(where: str, message: str) -> ConfigError:
    return ConfigError([Problem("error", where, message)])
