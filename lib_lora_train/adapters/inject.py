"""Adapters on a model: put in, switched, saved, taken out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lib_lora_train.adapters.adapted_layer import AdaptedLayer, Switch
from lib_lora_train.adapters.block_weights import EVERYWHERE, Block, blocks_of
from lib_lora_train.adapters.dropout import DropoutRates, DropoutState
from lib_lora_train.adapters.families.base import Family, base_weight
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.files.decode import ParsedLayer, ParsedLora, aliases, fitted, has_other_axis
from lib_lora_train.adapters.files.other_models import refuse_other_models
from lib_lora_train.adapters.flat_parameters import FlatBuffer, Slices
from lib_lora_train.adapters.layer_names import (
    is_ia3_target,
    is_norm_target,
    is_text_target,
    is_unet_target,
    text_encoder_groups,
    text_key,
    unet_keys,
)
from lib_lora_train.adapters.max_norm import NormLimit, all_norms
from lib_lora_train.adapters.registry import NORM, AdapterSpec, family_of
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.seeding import seed_for

_SHOWN_KEYS = 3


class ModelParts(Protocol):
    """What an adapter needs to know of a model; `models.model.DiffusionModel` is one."""

    @property
    def unet(self) -> nn.Module: ...

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]: ...

    @property
    def spec(self) -> Any:
        """Has `family`: sd1, sd2 or sdxl."""


@dataclass(frozen=True)
class Target:
    """One layer to adapt: its module name inside `root`, its name in the file, and how; `given`: with these numbers."""

    root: nn.Module
    name: str
    key: str
    family: Family
    options: Options
    rate_weight: float = 1.0
    given: Mapping[str, Tensor] | None = None

    @property
    def layer(self) -> nn.Module:
        return self.root.get_submodule(self.name)

    def put(self, module: nn.Module) -> None:
        """Let `module` take the layer's place."""
        parent, _, child = self.name.rpartition(".")
        setattr(self.root.get_submodule(parent), child, module)


class Adapter:
    """An adapter in place on a model.

    Attributes:
        spec: what was asked for
        groups: group name → its parameters, flat tensors (one for each learning-rate weight) in the spec's dtype.
            Names: `unet`, `text_encoder` (with two encoders `text_encoder_1`, `text_encoder_2`).
        layers: the file's module name (`lora_unet_…`) → the layer, in model order
        rate_weights: group name → the learning-rate weight of each of its parameters: blocks may learn slower or faster
        skipped: module names that the targets include but the family cannot adapt
        left_out: keys and layers of the file it began with that have no place in this model
    """

    def __init__(self, spec: AdapterSpec) -> None:
        self.spec = spec
        self.groups: dict[str, list[nn.Parameter]] = {}
        self.rate_weights: dict[str, list[float]] = {}
        self.layers: dict[str, AdaptedLayer] = {}
        self.skipped: tuple[str, ...] = ()
        self.left_out: tuple[str, ...] = ()
        self._switch = Switch()
        self._targets: dict[str, Target] = {}
        self._buffers: list[FlatBuffer] = []
        self._hooks: list[RemovableHandle] = []

    @contextmanager
    def strength(self, value: float) -> Iterator[None]:
        """Inside, the update counts `value` times, as `<lora:name:value>` does in the webui."""
        before = self._switch.strength
        self._switch.strength = value
        try:
            yield
        finally:
            self._switch.strength = before

    @contextmanager
    def training(self, rule: DropoutRates, seed: int, *counters: int) -> Iterator[None]:
        """Inside, forward and backward passes drop what `rule` says; `counters` name the micro-batch."""
        is_random = rule.drops or self.spec.family == "dylora"
        self._switch.chance = DropoutState(rule, seed, counters) if is_random else None
        try:
            yield
        finally:
            self._switch.chance = None

    @contextmanager
    def enabled(self, on: bool) -> Iterator[None]:
        """Inside, the adapter has its effect or none."""
        with self.strength(1.0 if on else 0.0):
            yield

    def state(self) -> dict[str, Tensor]:
        """kohya key → fp32 tensor on the CPU, a copy."""
        return {
            f"{key}.{ending}": tensor for key, layer in self.layers.items() for ending, tensor in layer.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over numbers saved by `state`, in any float dtype; AdapterError, changing nothing, if they do not fit.

        A missing alpha means alpha = rank, as everywhere.
        """
        _require_fit({key: layer.state_shapes() for key, layer in self.layers.items()}, state)
        for key, layer in self.layers.items():
            endings = layer.state_shapes()
            layer.load_state({ending: state[f"{key}.{ending}"] for ending in endings if f"{key}.{ending}" in state})

    def norms(self) -> dict[str, float]:
        """‖ΔW‖ (Frobenius) by module name, at strength 1."""
        norms = all_norms(list(self.layers.values()))
        return dict(zip(self.layers, norms.tolist(), strict=True))

    def norm_limit(self, most: float) -> NormLimit:
        """What scales every ‖ΔW‖ above `most` down to it; made once, applied after each step."""
        return NormLimit(list(self.layers.values()), most)

    def weighted(
        self, rates: Mapping[str, float], stand_ins: Mapping[str, Sequence[nn.Parameter]] | None = None
    ) -> tuple[dict[str, list[nn.Parameter]], dict[str, float]]:
        """Groups and learning rates with one group for each weight: `unet`, `unet x0.5` …, as optimisers want them.

        Of `stand_ins`, laid out like `groups`, where they are given.
        """
        groups: dict[str, list[nn.Parameter]] = {}
        weighted: dict[str, float] = {}
        for name, parameters in (self.groups if stand_ins is None else stand_ins).items():
            for parameter, weight in zip(parameters, self.rate_weights[name], strict=True):
                own = name if weight == 1 else f"{name} x{weight:g}"
                groups.setdefault(own, []).append(parameter)
                weighted[own] = rates[name] * weight
        return groups, weighted

    def to(self, device: torch.device) -> None:
        """Move the adapter's numbers (not the model's); parameters stay the same objects."""
        for buffer in self._buffers:
            buffer.to(device)

    def remove(self) -> None:
        """Put the very modules back that were there before. The adapter keeps its numbers."""
        for hook in self._hooks:
            hook.remove()
        for key, target in self._targets.items():
            target.put(self.layers[key].base_layer)
        self._hooks.clear()
        self._targets.clear()

    def _add_group(self, name: str, root: nn.Module, targets: list[Target], *, seed: int) -> None:
        """Adapt `targets` of `root` with numbers in one new buffer."""
        fresh = {target.key: _fresh(target, seed) for target in targets}
        tensors = [tensor for weights in fresh.values() for tensor in weights.values()]
        buffer, position = FlatBuffer(tensors, _device_of(root), dtype=self.spec.dtype), 0
        for target in targets:
            shorts = list(fresh[target.key])
            slices = Slices(buffer, {short: position + n for n, short in enumerate(shorts)})
            position += len(shorts)
            layer = AdaptedLayer(
                target.layer, target.family, slices, options=target.options, switch=self._switch, key=target.key
            )
            target.put(layer)
            self.layers[target.key] = layer
            self._targets[target.key] = target
        self.groups.setdefault(name, []).append(buffer.parameter)
        self.rate_weights.setdefault(name, []).append(targets[0].rate_weight)
        self._buffers.append(buffer)
        self._hooks += _cast_during_forward(root, buffer, self.layers[targets[0].key].base_layer)


def inject(model: ModelParts, spec: AdapterSpec, *, seed: int) -> Adapter:
    """A fresh adapter, without effect yet, on the layers that `spec` names.

    Freezes every parameter of the UNet and the text encoders. Each layer's numbers depend on the seed and the layer's
    name only. AdapterError if nothing would be trained or an adapter is in place already; the model is untouched then.
    """
    family_of(spec)  # refused before anything is touched
    roots = {"unet": model.unet, **{f"text {n}": encoder for n, encoder in enumerate(model.text_encoders)}}
    for root in roots.values():
        _refuse_adapted(root)
    adapter = Adapter(spec)
    found = _find_targets(model, spec)
    usable = {name: [t for t in targets if t.family.fits(t.layer)] for name, (_, targets) in found.items()}
    if not any(usable.values()):
        raise AdapterError("No layer would be trained. Switch on the UNet, the text encoder or both.")
    adapter.skipped = tuple(t.name for _, targets in found.values() for t in targets if not t.family.fits(t.layer))
    for root in roots.values():
        root.requires_grad_(False)
    for name, targets in usable.items():
        for weight in dict.fromkeys(target.rate_weight for target in targets):
            same = [target for target in targets if target.rate_weight == weight]
            adapter._add_group(name, found[name][0], same, seed=seed)
    return adapter


def inject_opened(
    model: ModelParts, opened: ParsedLora, *, takes_rows: bool = False
) -> tuple[Adapter, tuple[str, ...]]:
    """An adapter with the layers, families, ranks and numbers of a file, and the file's layers that have no place here.

    `takes_rows`: with DoRA for output channels too, which webuis would read as something else once it is saved again.
    AdapterError if none has, or an adapter is in place already; the model is untouched then.
    """
    roots = {"unet": model.unet, **{f"text {n}": encoder for n, encoder in enumerate(model.text_encoders)}}
    for root in roots.values():
        _refuse_adapted(root)
    found, left = opened_targets(model, opened, takes_rows)
    if not found:
        raise AdapterError("No layer of this file fits the model. Choose the checkpoint kind it was trained on.")
    for root in roots.values():
        root.requires_grad_(False)
    first = next(iter(found.values()))[1][0]
    name = "lora" if first.family is NORM else first.family.NAME
    adapter = Adapter(AdapterSpec(family=name, rank=first.options.rank, alpha=first.options.alpha))
    for group, (root, targets) in found.items():
        adapter._add_group(group, root, targets, seed=0)
    return adapter, left


def opened_targets(
    model: ModelParts, opened: ParsedLora, takes_rows: bool
) -> tuple[dict[str, tuple[nn.Module, list[Target]]], tuple[str, ...]]:
    """Group name → (root, targets with their numbers), and the file's names that fit nowhere; AdapterError for Flux."""
    refuse_other_models(opened.layers)
    family: str = model.spec.family
    layers = [*_layer_names(model.unet, lambda name: is_unet_target(name, "full")), *_norm_names(model.unet)]
    texts = [_layer_names(root, lambda name: is_text_target(name, "full", family="")) for root in model.text_encoders]
    alias = aliases(layers, texts, family=family)
    wanted = {alias[name]: layer for name, layer in opened.layers.items() if name in alias}
    left = [name for name in opened.layers if name not in alias]
    groups = text_encoder_groups(len(model.text_encoders))
    places = [("unet", model.unet, unet_keys(layers, family=family))]
    for (group, prefix), encoder, names in zip(groups, model.text_encoders, texts, strict=True):
        places.append((group, encoder, {name: text_key(name, prefix) for name in names}))
    found: dict[str, tuple[nn.Module, list[Target]]] = {}
    for group, root, keys in places:
        targets = []
        for name, key in keys.items():
            if key in wanted:
                is_usable = takes_rows or not has_other_axis(wanted[key])
                target = _given_target(root, name, key, wanted[key]) if is_usable else None
                targets += [target] if target else []
                left += [] if target else [key]
        if targets:
            found[group] = (root, targets)
    return found, tuple(left)


def _given_target(root: nn.Module, name: str, key: str, layer: ParsedLayer) -> Target | None:
    """The layer with the file's numbers; None if they are for a layer of another kind or size."""
    module = root.get_submodule(name)
    base = base_weight(module).detach()
    given = fitted(layer.weights, base)
    if given is None or not layer.family.fits(module):
        return None
    try:
        diff = layer.family.diff_weight(given, layer.options, base.float().cpu())
    except (RuntimeError, ValueError):  # torch's word for shapes that do not go together
        return None
    if diff.shape != base.shape:
        return None
    return Target(root, name, key, layer.family, layer.options, given=given)


def _find_targets(model: ModelParts, spec: AdapterSpec) -> dict[str, tuple[nn.Module, list[Target]]]:
    """Group name → (root module, its target layers in model order)."""
    found: dict[str, tuple[nn.Module, list[Target]]] = {}
    model_family: str = model.spec.family
    if spec.unet:
        found["unet"] = (model.unet, list(_unet_targets(model.unet, spec, model_family)))
    if spec.text_encoder:
        groups = text_encoder_groups(len(model.text_encoders))
        for (group, prefix), encoder in zip(groups, model.text_encoders, strict=True):
            names = _layer_names(encoder, lambda name: is_text_target(name, spec.targets, family=model_family))
            is_packed = model_family == "sd2" or prefix == "lora_te2"
            wanted = [name for name in names if _is_wanted(spec, name, is_packed=is_packed)]
            found[group] = (encoder, [_target(encoder, name, text_key(name, prefix), spec) for name in wanted])
    return found


def _unet_targets(unet: nn.Module, spec: AdapterSpec, model_family: str) -> Iterator[Target]:
    """The UNet's target layers, and its norms if they are trained too."""
    layers = _layer_names(unet, lambda name: is_unet_target(name, "full"))
    norms = _norm_names(unet) if spec.train_norm else []
    blocks = blocks_of([*layers, *norms], spec.blocks, family=model_family)
    for name, key in unet_keys([*layers, *norms], family=model_family).items():
        block = blocks[name]
        if block.is_left_out:
            continue
        if isinstance(unet.get_submodule(name), (nn.GroupNorm, nn.LayerNorm)):
            if is_norm_target(name, spec.targets):
                yield Target(unet, name, key, NORM, Options(), block.rate_weight)
        elif is_unet_target(name, spec.targets) and _is_wanted(spec, name):
            yield _target(unet, name, key, spec, block=block)


def _is_wanted(spec: AdapterSpec, name: str, *, is_packed: bool = False) -> bool:
    """(IA)³ has targets of its own within the presets."""
    return spec.family != "ia3" or is_ia3_target(name, spec.targets, is_packed=is_packed)


def _target(root: nn.Module, name: str, key: str, spec: AdapterSpec, *, block: Block = EVERYWHERE) -> Target:
    layer, family = root.get_submodule(name), family_of(spec)
    options = spec.options_for(layer, name, block)
    settled = family.settled(layer, options) if family.fits(layer) else options
    return Target(root, name, key, family, settled, block.rate_weight)


def _layer_names(root: nn.Module, wanted: Callable[[str], bool]) -> list[str]:
    """Names of the linear and convolution layers that `wanted` accepts, in model order."""
    return [n for n, module in root.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d)) and wanted(n)]


def _norm_names(root: nn.Module) -> list[str]:
    return [n for n, module in root.named_modules() if isinstance(module, (nn.GroupNorm, nn.LayerNorm))]


def _refuse_adapted(root: nn.Module) -> None:
    if any(isinstance(module, BaseTunerLayer) for module in root.modules()):
        raise AdapterError("The model carries an adapter already. Remove it before a new one is put in.")


def _fresh(target: Target, seed: int) -> dict[str, Tensor]:
    """Initial tensors that depend on nothing but the seed and the layer's name in the file, in the slices' order."""
    if target.given is not None:
        return dict(target.given)
    generator = torch.Generator().manual_seed(seed_for(seed, f"{target.family.NAME}/{target.key}"))
    weights = target.family.init_weights(target.layer, target.options, generator)
    return {short: weights[short] for short in target.family.STATE_KEYS if short in weights}


def _device_of(root: nn.Module) -> torch.device:
    return next(root.parameters()).device


def _cast_during_forward(root: nn.Module, buffer: FlatBuffer, layer: nn.Module) -> list[RemovableHandle]:
    """Hooks that cast the whole buffer once per forward pass of `root`, to the dtype `layer` computes in."""
    return [
        root.register_forward_pre_hook(lambda *_: buffer.begin_cast(base_weight(layer).dtype)),
        root.register_forward_hook(lambda *_: buffer.end_cast(), always_call=True),
    ]


def _require_fit(expected: Mapping[str, Mapping[str, torch.Size]], state: Mapping[str, Tensor]) -> None:
    """AdapterError that names the first keys which are missing, unknown or of another shape."""
    shapes = {f"{key}.{ending}": shape for key, endings in expected.items() for ending, shape in endings.items()}
    optional = (".alpha", ".on_input")
    missing = [key for key in shapes if key not in state and not key.endswith(optional)]
    unknown = [key for key in state if key not in shapes]
    other = [
        f"{key} {tuple(state[key].shape)}, not {tuple(shape)}"
        for key, shape in shapes.items()
        if key in state and state[key].shape != shape
    ]
    findings = {"missing": missing, "unknown": unknown, "of another shape": other}
    if not any(findings.values()):
        return
    told = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in findings.items() if keys)
    raise AdapterError(
        f"The LoRA does not fit this run: {told}. It must be of the same model kind, rank and targets as the settings."
    )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN_KEYS]) + (", …" if len(keys) > _SHOWN_KEYS else "")
