"""The layers of a model that an adapter adapts: those that the settings name, or those of a LoRA file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from lib_lora_train.adapters.block_weights import DEFAULT_BLOCK, BlockSettings, resolve_blocks
from lib_lora_train.adapters.families.base import Family
from lib_lora_train.adapters.families.options import Options
from lib_lora_train.adapters.files.decode import ParsedLayer, ParsedLora, aliases, weights_for
from lib_lora_train.adapters.layer_names import is_ia3_target, is_text_target, text_encoder_groups, text_key
from lib_lora_train.adapters.layer_overrides import override_unet_layers, text_layer_settings
from lib_lora_train.adapters.registry import NORM, AdapterSpec, family_of
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
