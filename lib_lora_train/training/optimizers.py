"""Optimisers over the adapter's groups: one interface for those that take a learning rate and those that estimate it.

Every group (`unet`, `text_encoder`…) has its own learning rate. AdamW and the like take these as they are. Prodigy and
D-Adaptation estimate one distance d from all gradients and refuse different learning rates; for them there is
`SharedDistanceOptimizer`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from lib_lora_train.config.method_catalog import nearest_lora
from lib_lora_train.config.optimizer_args import parse_optimizer_args
from lib_lora_train.config.optimizer_catalog import CUSTOM, OPTIMIZER_CATALOG, OptimizerInfo, uses_relative_step
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import ConfigError, Problem

Groups = Mapping[str, Sequence[nn.Parameter]]
Factory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
"""Creates an optimiser from parameter groups with their learning rates."""

_MAX_RELATIVE_STEP, _RELATIVE_WARMUP = 1e-2, 1e-6  # Shazeer & Stern 2018, section 8: the step sizes ρ_t
_CLASS_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class Optimizer(Protocol):
    """An optimiser over named groups."""

    def step(self, factor: float) -> None:
        """Take one step from the current gradients, with every learning rate times `factor`, and free them."""

    def reload_parameters(self) -> None:
        """Continue from the current parameters, which something else has changed since the last step."""

    def effective_rates(self) -> dict[str, float]:
        """Group → learning rate of the last step: d·lr where the optimiser estimates d."""

    def set_train(self, on: bool) -> None:
        """Switch the parameters between training and evaluation weights, if the optimiser has both."""

    def state(self) -> dict[str, Any]:
        """What `load_state` needs; tensors are not copied."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""


def group_rates(config: TrainConfig, names: Sequence[str]) -> dict[str, float]:
    """Group → learning rate; `learning_rate` where a group's own is not set, as with every method but LoRA.

    The second text encoder's falls back to the first one's.
    """
    config = nearest_lora(config)
    text = config.text_encoder_lr
    second = text if config.text_encoder_2_lr is None else config.text_encoder_2_lr
    own = {name: {"unet": config.unet_lr, "text_encoder_2": second}.get(name, text) for name in names}
    return {name: config.learning_rate if rate is None else rate for name, rate in own.items()}


def make_optimizer(groups: Groups, rates: Mapping[str, float], *, config: TrainConfig) -> Optimizer:
    """The optimiser that the settings name; groups with a learning rate of 0 are frozen.

    ConfigError if no group is left, the optimiser does not have an argument, or its package is missing.
    """
    for name, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(rates[name] > 0)
    live = {name: list(parameters) for name, parameters in groups.items() if rates[name] > 0}
    if not live:
        raise _error("learning_rate", "is 0 for every part of the model. Set it above 0 for at least one.")
    optimizer_class = _optimizer_class(config, OPTIMIZER_CATALOG[config.optimizer])
    arguments = _arguments(config, live)

    def make(params: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if uses_relative_step(config.optimizer, config.lr_schedule):
            params = [{**group, "lr": None} for group in params]
        return _create(optimizer_class, params, arguments)

    if estimates_lr(config.optimizer, optimizer_class):
        return SharedDistanceOptimizer(live, rates, make)
    if uses_relative_step(config.optimizer, config.lr_schedule):
        return RelativeStepOptimizer(live, make)
    return PlainOptimizer(live, rates, make)


def estimates_lr(optimizer: str, built: Any) -> bool:
    """Whether it estimates the learning rate: as the catalog says, or if it has the argument d0, the estimate's start.

    So do all of the Prodigy and D-Adaptation families.
    """
    return OPTIMIZER_CATALOG[optimizer].estimates_lr or "d0" in inspect.signature(built).parameters


def _arguments(config: TrainConfig, groups: Groups) -> dict[str, Any]:
    """The optimiser's arguments: the user's, over the defaults that its name or the training implies."""
    given = parse_optimizer_args(config.optimizer_args)
    own_steps = uses_relative_step(config.optimizer, config.lr_schedule)
    on_cuda = all(p.is_cuda for parameters in groups.values() for p in parameters)
    defaults: dict[str, dict[str, Any]] = {
        "AdamW": {"fused": True} if on_cuda else {},
        "SGDNesterov": {"momentum": 0.9, "nesterov": True},
        "Adafactor": {"relative_step": own_steps, "scale_parameter": own_steps},
    }
    return {**defaults.get(config.optimizer, {}), **given}


class PlainOptimizer:
    """Every group at its own learning rate."""

    def __init__(self, groups: Groups, rates: Mapping[str, float], make: Factory) -> None:
        self._rates = {name: rates[name] for name in groups}
        self._optimizer = make([{"params": list(group), "lr": rates[name]} for name, group in groups.items()])
        _set_train(self._optimizer, True)

    def step(self, factor: float) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates.values(), strict=True):
            group["lr"] = rate * factor
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def reload_parameters(self) -> None:
        """Nothing to do: no copies are kept."""

    def effective_rates(self) -> dict[str, float]:
        """Schedule-free optimisers have their own warm-up and report it as `scheduled_lr`."""
        groups = zip(self._rates, self._optimizer.param_groups, strict=True)
        return {name: float(group.get("scheduled_lr", group["lr"])) for name, group in groups}

    def set_train(self, on: bool) -> None:
        _set_train(self._optimizer, on)

    def state(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])


class RelativeStepOptimizer(PlainOptimizer):
    """Adafactor with relative steps (Shazeer & Stern 2018, section 8): there is no learning rate at all."""

    def __init__(self, groups: Groups, make: Factory) -> None:
        super().__init__(groups, dict.fromkeys(groups, 0.0), make)

    def step(self, factor: float) -> None:  # noqa: ARG002  it follows its own schedule
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def effective_rates(self) -> dict[str, float]:
        """The relative step size ρ_t; with `scale_parameter` it is multiplied by the size of each matrix."""
        rates = {}
        for name, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            step = self._optimizer.state.get(group["params"][0], {}).get("step", 1)
            limit = _RELATIVE_WARMUP * step if group["warmup_init"] else _MAX_RELATIVE_STEP
            rates[name] = float(min(limit, step**-0.5))
        return rates


class SharedDistanceOptimizer:
    """Prodigy (Mishchenko & Defazio 2023) or D-Adaptation (Defazio & Mishchenko 2023) with one d for all groups.

    Learning rates may be in any ratio. d is the distance to the solution in *one* space, so all groups must move by the
    same rule. A group whose rate is r times the highest is therefore optimised in coordinates φ = θ / r: its gradient
    is r ∂L/∂θ, and a step of φ by d·lr is a step of θ by r·d·lr. How d is estimated does not change, and with equal
    rates (r = 1) this is the plain optimiser on one group.
    """

    def __init__(self, groups: Groups, rates: Mapping[str, float], make: Factory) -> None:
        self._rate = max(rates[name] for name in groups)
        self._ratios = {name: rates[name] / self._rate for name in groups}
        self._pairs = [(p, _scaled(p, self._ratios[name]), self._ratios[name]) for name in groups for p in groups[name]]
        params = [{"params": [scaled for _, scaled, _ in self._pairs], "lr": self._rate}]
        self._optimizer = make(params)

    def step(self, factor: float) -> None:
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

    def reload_parameters(self) -> None:
        with torch.no_grad():
            for parameter, scaled, ratio in self._pairs:
                if scaled is not parameter:
                    torch.div(parameter, ratio, out=scaled)

    def effective_rates(self) -> dict[str, float]:
        group = self._optimizer.param_groups[0]
        return {name: float(group.get("d", 1.0)) * float(group["lr"]) * ratio for name, ratio in self._ratios.items()}

    def set_train(self, on: bool) -> None:
        _set_train(self._optimizer, on)

    def state(self) -> dict[str, Any]:
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaled": [scaled.detach() for scaled in self._copies()],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        copies = self._copies()
        given = state["scaled"]
        if len(given) != len(copies):  # older states hold the values of all groups
            given = [saved for saved, (p, scaled, _) in zip(given, self._pairs, strict=True) if scaled is not p]
        with torch.no_grad():
            for scaled, saved in zip(copies, given, strict=True):
                scaled.copy_(saved)

    def _copies(self) -> list[nn.Parameter]:
        """The scaled copies; parameters at the highest rate have none."""
        return [scaled for parameter, scaled, _ in self._pairs if scaled is not parameter]


def _scaled(parameter: nn.Parameter, ratio: float) -> nn.Parameter:
    return parameter if ratio == 1 else nn.Parameter(parameter.detach() / ratio)


def _set_train(optimizer: torch.optim.Optimizer, on: bool) -> None:
    """Switch a schedule-free optimiser, recognised by its methods; others have nothing to switch."""
    switch = getattr(optimizer, "train" if on else "eval", None)
    if callable(switch):
        switch()


# --- creating one ---------------------------------------------------------------------------------


def _optimizer_class(config: TrainConfig, kind: OptimizerInfo) -> Any:
    """The optimiser's class; ConfigError that says what to install or why it cannot be used."""
    if config.optimizer == CUSTOM:
        return _custom_class(config.custom_optimizer)
    module, _, name = kind.origin.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as reason:
        package = kind.package or module
        text = f"{config.optimizer} needs the package {package} ({reason}). Install it: pip install {package}"
        raise _error("optimizer", f"{text}, or choose AdamW.") from None


def _custom_class(name: str) -> Any:
    """The class that `package.Class` names; only subclasses of torch.optim.Optimizer are accepted."""
    if not _CLASS_NAME.fullmatch(name):
        raise _error("custom_optimizer", f"{name!r} does not have the form package.Class.")
    module, _, last = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError) as reason:
        text = f"{name} was not found ({reason}). Install its package with pip or correct the name."
        raise _error("custom_optimizer", text) from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise _error("custom_optimizer", f"{name} is not a subclass of torch.optim.Optimizer.")
    return found


def _create(optimizer_class: Any, params: list[dict[str, Any]], arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
    signature = inspect.signature(optimizer_class).parameters
    known = [name for name in signature if name not in ("params", "lr")]
    accepts_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.values())
    unknown = [] if accepts_any else [name for name in arguments if name not in known]
    if unknown:
        message = f"{optimizer_class.__name__} has no argument {', '.join(unknown)}. It has {', '.join(known)}."
        raise _error("optimizer_args", message)
    try:
        optimizer: torch.optim.Optimizer = optimizer_class(params, lr=params[0]["lr"], **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as reason:
        raise _error("optimizer_args", f"{optimizer_class.__name__} rejects these arguments: {reason}") from reason
    return optimizer


def _error(where: str, message: str) -> ConfigError:
    return ConfigError([Problem("error", where, message)])
