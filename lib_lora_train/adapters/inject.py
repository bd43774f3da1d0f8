"""Adapters on a model: injected, switched on and off, saved, removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lib_lora_train.adapters.adapted_layer import AdaptedLayer, AdapterSwitch
from lib_lora_train.adapters.block_weights import DEFAULT_BLOCK, BlockSettings, resolve_blocks
from lib_lora_train.adapters.dropout import DropoutRates, DropoutState
from lib_lora_train.adapters.families.base import Family, base_weight
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.files.decode import ParsedLayer, ParsedLora, aliases, weights_for
from lib_lora_train.adapters.files.unread_keys import describe_unread
from lib_lora_train.adapters.flat_parameters import FlatBuffer, Slices
from lib_lora_train.adapters.joint_lora import join_projections, separate_projections
from lib_lora_train.adapters.layer_names import (
    is_ia3_target,
    is_text_target,
    text_encoder_groups,
    text_key,
)
from lib_lora_train.adapters.layer_overrides import override_unet_layers, text_layer_settings
from lib_lora_train.adapters.max_norm import NormLimit, delta_norms
from lib_lora_train.adapters.registry import NORM, AdapterSpec, family_of
from lib_lora_train.adapters.state_fit import require_fit
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.seeding import seed_for
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.other_models import refuse_other_models


class ModelParts(Protocol):
    """The parts of a model that an adapter needs; `DiffusionModel` has them."""

    @property
    def unet(self) -> nn.Module: ...

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]: ...

    @property
    def spec(self) -> Any:
        """Its `architecture` is sd1, sd2 or sdxl."""


@dataclass(frozen=True)
class Target:
    """One layer to adapt: its module name inside `root`, its `key` in files, and how.

    `weights` are the ones to start with; None: new ones.
    """

    root: nn.Module
    name: str
    key: str
    family: Family
    options: Options
    lr_weight: float = 1.0
    weights: Mapping[str, Tensor] | None = None

    @property
    def layer(self) -> nn.Module:
        return self.root.get_submodule(self.name)

    def replace_layer(self, module: nn.Module) -> None:
        """Put `module` in the layer's place."""
        parent, _, child = self.name.rpartition(".")
        setattr(self.root.get_submodule(parent), child, module)


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


def require_a_fit(found: Mapping[str, Any], parsed: ParsedLora) -> None:
    """AdapterError if no layer of a file fits the model; it names what is not read of the file."""
    if not found:
        unread = f" Not read: {describe_unread(parsed.unknown)}." if parsed.unknown else ""
        raise AdapterError(
            f"No layer of this file fits the model.{unread} Choose a checkpoint of the kind it was trained on."
        )


def has_adapter(model: ModelParts) -> bool:
    """Whether an adapter is injected into the model, such as that of a training."""
    roots = (model.unet, *model.text_encoders)
    return any(isinstance(module, BaseTunerLayer) for root in roots for module in root.modules())


def match_targets(
    model: ModelParts, parsed: ParsedLora
) -> tuple[dict[str, tuple[nn.Module, list[Target]]], tuple[str, ...]]:
    """Group name → (root, targets with the file's weights), and the names of the file's layers that do not fit.

    AdapterError for files of other models, such as Flux.
    """
    kind = kind_of(model.spec.architecture)
    if kind.has_unet_blocks:
        refuse_other_models(parsed.input_widths, model.spec.architecture)
    layers = unet_layer_names(model)
    texts = [
        _layer_names(root, lambda name: is_text_target(name, "full", architecture="")) for root in model.text_encoders
    ]
    alias = aliases(kind.lora_aliases(layers), texts)
    wanted = {alias[name]: layer for name, layer in parsed.layers.items() if name in alias}
    unmatched = [name for name in parsed.layers if name not in alias]
    groups = text_encoder_groups(len(model.text_encoders))
    places = [("unet", model.unet, kind.lora_keys(layers))]
    for (group, prefix), encoder, names in zip(groups, model.text_encoders, texts, strict=True):
        places.append((group, encoder, {name: text_key(name, prefix) for name in names}))
    found: dict[str, tuple[nn.Module, list[Target]]] = {}
    for group, root, keys in places:
        targets = []
        for name, key in keys.items():
            if key in wanted:
                target = _parsed_target(root, name, key, wanted[key])
                targets += [target] if target else []
                unmatched += [] if target else [key]
        if targets:
            found[group] = (root, targets)
    return found, tuple(unmatched)


def unet_layer_names(model: ModelParts) -> list[str]:
    """Names of every layer and norm of the UNet that can have an adapter, in model order."""
    kind = kind_of(model.spec.architecture)
    return [*_layer_names(model.unet, lambda name: kind.is_target(name, "full")), *_norm_names(model.unet)]


def _parsed_target(root: nn.Module, name: str, key: str, layer: ParsedLayer) -> Target | None:
    """The target with the file's weights; None if they are for a layer of another kind or size."""
    weights = weights_for(layer, root.get_submodule(name))
    return None if weights is None else Target(root, name, key, layer.family, layer.options, weights=weights)


def find_targets(model: ModelParts, spec: AdapterSpec) -> dict[str, tuple[nn.Module, list[Target]]]:
    """Group name → (root module, its target layers in model order)."""
    found: dict[str, tuple[nn.Module, list[Target]]] = {}
    architecture: str = model.spec.architecture
    if spec.unet:
        found["unet"] = (model.unet, list(_unet_targets(model.unet, spec, architecture)))
    if spec.text_encoder:
        groups = text_encoder_groups(len(model.text_encoders))
        for (group, prefix), encoder in zip(groups, model.text_encoders, strict=True):
            names = _layer_names(encoder, lambda name: is_text_target(name, spec.targets, architecture=architecture))
            is_packed = architecture == "sd2" or prefix == "lora_te2"
            wanted = [name for name in names if _is_wanted(spec, name, is_packed=is_packed)]
            found[group] = (encoder, list(_text_targets(encoder, wanted, prefix, spec)))
    return found


def _text_targets(encoder: nn.Module, names: Sequence[str], prefix: str, spec: AdapterSpec) -> Iterator[Target]:
    """The target layers of a text encoder, among the `names` that the settings include."""
    for name, block in text_layer_settings(spec.layers, names, prefix=prefix).items():
        if not block.is_excluded:
            yield _target(encoder, name, text_key(name, prefix), spec, block=block)


def _unet_targets(unet: nn.Module, spec: AdapterSpec, architecture: str) -> Iterator[Target]:
    """The UNet's target layers, and its norms if they are trained too."""
    kind = kind_of(architecture)
    layers = _layer_names(unet, lambda name: kind.is_target(name, "full"))
    norms = _norm_names(unet) if spec.train_norm else []
    blocks = override_unet_layers(
        spec.layers,
        resolve_blocks([*layers, *norms], spec.blocks, architecture=architecture),
        architecture=architecture,
    )
    for name, key in kind.lora_keys([*layers, *norms]).items():
        block = blocks[name]
        if block.is_excluded:
            continue
        if isinstance(unet.get_submodule(name), (nn.GroupNorm, nn.LayerNorm)):
            if kind.is_norm_target(name, spec.targets):
                yield Target(unet, name, key, NORM, Options(), block.lr_weight)
        elif kind.is_target(name, spec.targets) and _is_wanted(spec, name):
            yield _target(unet, name, key, spec, block=block)


def _is_wanted(spec: AdapterSpec, name: str, *, is_packed: bool = False) -> bool:
    """Whether the family adapts a layer of the preset: (IA)³ adapts only some."""
    return spec.family != "ia3" or is_ia3_target(name, spec.targets, is_packed=is_packed)


def _target(root: nn.Module, name: str, key: str, spec: AdapterSpec, *, block: BlockSettings = DEFAULT_BLOCK) -> Target:
    layer, family = root.get_submodule(name), family_of(spec)
    options = spec.options_for(layer, name, block)
    adjusted = family.adjust_options(layer, options) if family.fits(layer) else options
    return Target(root, name, key, family, adjusted, block.lr_weight)


def _layer_names(root: nn.Module, wanted: Callable[[str], bool]) -> list[str]:
    """Names of the linear and convolution layers that `wanted` accepts, in model order."""
    return [n for n, module in root.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d)) and wanted(n)]


def _norm_names(root: nn.Module) -> list[str]:
    """Names of the norms that have weights, in model order."""
    norms = ((n, module) for n, module in root.named_modules() if isinstance(module, (nn.GroupNorm, nn.LayerNorm)))
    return [name for name, module in norms if module.weight is not None]


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
