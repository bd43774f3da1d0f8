"""Adapters on a model: injected, switched on and off, saved, removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lib_lora_train.adapters.adapted_layer import AdaptedLayer, AdapterSwitch
from lib_lora_train.adapters.dropout import DropoutRates, DropoutState
from lib_lora_train.adapters.families.base import base_weight
from lib_lora_train.adapters.files.decode import ParsedLora
from lib_lora_train.adapters.files.lora_file import read_adapter
from lib_lora_train.adapters.files.unread_keys import describe_unread
from lib_lora_train.adapters.flat_parameters import FlatBuffer, Slices
from lib_lora_train.adapters.joint_lora import join_projections, separate_projections
from lib_lora_train.adapters.max_norm import NormLimit, delta_norms
from lib_lora_train.adapters.registry import NORM, AdapterSpec, family_of
from lib_lora_train.adapters.state_fit import require_fit
from lib_lora_train.adapters.targets import ModelParts, Target, find_targets, match_targets
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.seeding import seed_for


class Adapter:
    """An adapter injected into a model.

    Attributes:
        spec: what it was created from
        groups: group name → its parameters, flat tensors (one for each learning-rate weight) in the spec's dtype.
            Names: `unet`, `text_encoder` (with two encoders `text_encoder_1`, `text_encoder_2`).
        layers: the file's module name (`lora_unet_…`) → the layer, in model order
        lr_weights: group name → the learning-rate weight of each of its parameters, for blocks that learn slower or
            faster
        skipped: module names that the targets include but the family cannot adapt
        left_out: keys and layers of the file it started from that do not exist in this model
    """

    def __init__(self, spec: AdapterSpec) -> None:
        self.spec = spec
        self.groups: dict[str, list[nn.Parameter]] = {}
        self.lr_weights: dict[str, list[float]] = {}
        self.layers: dict[str, AdaptedLayer] = {}
        self.skipped: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()
        self._switch = AdapterSwitch()
        self._targets: dict[str, Target] = {}
        self._buffers: list[FlatBuffer] = []
        self._hooks: list[RemovableHandle] = []
        self._joined: list[Any] = []

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.spec.dtype

    @contextmanager
    def strength(self, value: float) -> Iterator[None]:
        """Inside, the update is scaled by `value`, as by `<lora:name:value>` in the webui."""
        before = self._switch.strength
        self._switch.strength = value
        try:
            yield
        finally:
            self._switch.strength = before

    @contextmanager
    def training(self, rates: DropoutRates, seed: int, *counters: int) -> Iterator[None]:
        """Inside are the forward and backward passes of one micro-batch, which `counters` identify, with dropout.

        The gradients are complete afterwards.
        """
        is_random = rates.is_active or self.spec.family == "dylora"
        self._switch.dropout = DropoutState(rates, seed, counters) if is_random else None
        try:
            with ExitStack() as stack:
                for buffer in self._buffers:
                    stack.enter_context(buffer.micro_batch())
                yield
        finally:
            self._switch.dropout = None

    @contextmanager
    def enabled(self, on: bool) -> Iterator[None]:
        """Inside, the adapter is on (strength 1) or off."""
        with self.strength(1.0 if on else 0.0):
            yield

    def state(self) -> dict[str, Tensor]:
        """kohya key → fp32 tensor on the CPU, a copy."""
        return {
            f"{key}.{ending}": tensor for key, layer in self.layers.items() for ending, tensor in layer.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` returned, in any float dtype; AdapterError, changing nothing, if it does not fit.

        A missing alpha means alpha = rank, as in all tools.
        """
        require_fit({key: layer.state_shapes() for key, layer in self.layers.items()}, state)
        for key, layer in self.layers.items():
            endings = layer.state_shapes()
            layer.load_state({ending: state[f"{key}.{ending}"] for ending in endings if f"{key}.{ending}" in state})

    def norms(self) -> dict[str, float]:
        """‖ΔW‖ (Frobenius) by module name, at strength 1."""
        norms = delta_norms(list(self.layers.values()))
        return dict(zip(self.layers, norms.tolist(), strict=True))

    def load_file(self, path: Path) -> None:
        """Load the weights of a LoRA file; AdapterError if it is missing, damaged or does not fit."""
        self.load_state(read_adapter(path).state)

    def norm_control(self, config: TrainConfig) -> NormLimit | None:
        """The limit that `scale_weight_norms` sets; None if it is 0."""
        return self.norm_limit(config.scale_weight_norms) if config.scale_weight_norms else None

    def norm_limit(self, max_norm: float) -> NormLimit:
        """Scales every ‖ΔW‖ above `max_norm` down to it; created once, applied after each step."""
        return NormLimit(list(self.layers.values()), max_norm)

    def parameter_groups(
        self, rates: Mapping[str, float], master_weights: Mapping[str, Sequence[nn.Parameter]] | None = None
    ) -> tuple[dict[str, list[nn.Parameter]], dict[str, float]]:
        """Optimiser groups and their learning rates, one group for each learning-rate weight: `unet`, `unet x0.5` ….

        The groups hold the adapter's parameters or, if given, the `master_weights`, laid out like `groups`.
        """
        groups: dict[str, list[nn.Parameter]] = {}
        group_rates: dict[str, float] = {}
        for name, parameters in (self.groups if master_weights is None else master_weights).items():
            for parameter, weight in zip(parameters, self.lr_weights[name], strict=True):
                group = name if weight == 1 else f"{name} x{weight:g}"
                groups.setdefault(group, []).append(parameter)
                group_rates[group] = rates[name] * weight
        return groups, group_rates

    def remove(self) -> None:
        """Put the original modules back. The adapter keeps its weights."""
        for hook in self._hooks:
            hook.remove()
        separate_projections(self._joined)
        for key, target in self._targets.items():
            target.replace_layer(self.layers[key].base_layer)
        self._hooks.clear()
        self._joined.clear()
        self._targets.clear()

    def _adapt(self, model: ModelParts, groups: Mapping[str, tuple[nn.Module, Sequence[Target]]], *, seed: int) -> None:
        """Freeze the model and adapt the targets, with a buffer for each group and learning-rate weight."""
        for root in (model.unet, *model.text_encoders):
            root.requires_grad_(False)
        for name, (root, targets) in groups.items():
            for weight in dict.fromkeys(target.lr_weight for target in targets):
                self._add_group(name, root, [target for target in targets if target.lr_weight == weight], seed=seed)
        self._joined = join_projections(model.unet)

    def _add_group(self, name: str, root: nn.Module, targets: list[Target], *, seed: int) -> None:
        """Adapt `targets` of `root`, with their weights in one new buffer."""
        initial = {target.key: _initial_weights(target, seed) for target in targets}
        tensors = [tensor for weights in initial.values() for tensor in weights.values()]
        buffer, position = FlatBuffer(tensors, next(root.parameters()).device, dtype=self.spec.dtype), 0
        for target in targets:
            shorts = list(initial[target.key])
            slices = Slices(buffer, {short: position + n for n, short in enumerate(shorts)})
            position += len(shorts)
            layer = AdaptedLayer(
                target.layer, target.family, slices, options=target.options, switch=self._switch, key=target.key
            )
            target.replace_layer(layer)
            self.layers[target.key] = layer
            self._targets[target.key] = target
        self.groups.setdefault(name, []).append(buffer.parameter)
        self.lr_weights.setdefault(name, []).append(targets[0].lr_weight)
        self._buffers.append(buffer)
        self._hooks += _cast_during_forward(root, buffer, self.layers[targets[0].key].base_layer)


def inject(model: ModelParts, spec: AdapterSpec, *, seed: int) -> Adapter:
    """A new adapter, with no effect yet, on the layers that `spec` selects.

    Freezes every parameter of the UNet and the text encoders. Each layer's weights depend only on the seed and the
    layer's name. AdapterError, leaving the model untouched, if nothing would be trained or the model has an adapter.
    """
    family_of(spec)  # raises before anything is changed
    _require_no_adapter(model)
    adapter = Adapter(spec)
    found = find_targets(model, spec)
    usable = {name: (root, [t for t in targets if t.family.fits(t.layer)]) for name, (root, targets) in found.items()}
    if not any(targets for _, targets in usable.values()):
        raise AdapterError("No layer would be trained. Turn on train_unet, train_text_encoder or both.")
    adapter.skipped = tuple(t.name for _, targets in found.values() for t in targets if not t.family.fits(t.layer))
    adapter._adapt(model, usable, seed=seed)
    return adapter


def inject_parsed(model: ModelParts, parsed: ParsedLora) -> tuple[Adapter, tuple[str, ...]]:
    """An adapter with a file's layers, families, ranks and weights, and the file's layers that do not fit the model.

    AdapterError, leaving the model untouched, if no layer fits or the model has an adapter.
    """
    _require_no_adapter(model)
    found, unmatched = match_targets(model, parsed)
    require_a_fit(found, parsed)
    first = next(iter(found.values()))[1][0]
    name = "lora" if first.family is NORM else first.family.NAME
    adapter = Adapter(AdapterSpec(family=name, rank=first.options.rank, alpha=first.options.alpha))
    adapter._adapt(model, found, seed=0)
    return adapter, unmatched


def require_a_fit(found: Mapping[str, Any], parsed: ParsedLora, name: str = "this file") -> None:
    """AdapterError if no layer of a file fits the model; it names the file and what is not read of it."""
    if not found:
        unread = f" Not read: {describe_unread(parsed.unknown)}." if parsed.unknown else ""
        raise AdapterError(
            f"No layer of {name} fits the model.{unread} Choose a checkpoint of the kind it was trained on."
        )


def has_adapter(model: ModelParts) -> bool:
    """Whether an adapter is injected into the model, such as that of a training."""
    roots = (model.unet, *model.text_encoders)
    return any(isinstance(module, BaseTunerLayer) for root in roots for module in root.modules())


def _require_no_adapter(model: ModelParts) -> None:
    """AdapterError if the model has an adapter."""
    if has_adapter(model):
        raise AdapterError("The model already has an adapter. Remove it before adding another one.")


def _initial_weights(target: Target, seed: int) -> dict[str, Tensor]:
    """The target's weights, else initial ones that depend only on seed and key; in the slices' order."""
    if target.weights is not None:
        return dict(target.weights)
    generator = torch.Generator().manual_seed(seed_for(seed, f"{target.family.NAME}/{target.key}"))
    weights = target.family.init_weights(target.layer, target.options, generator)
    return {short: weights[short] for short in target.family.STATE_KEYS if short in weights}


def _cast_during_forward(root: nn.Module, buffer: FlatBuffer, layer: nn.Module) -> list[RemovableHandle]:
    """Hooks that cast the whole buffer once per forward pass of `root`, to `layer`'s dtype."""
    return [
        root.register_forward_pre_hook(lambda *_: buffer.begin_cast(base_weight(layer).dtype)),
        root.register_forward_hook(lambda *_: buffer.end_cast(), always_call=True),
    ]
