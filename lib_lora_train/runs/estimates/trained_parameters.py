"""Count the parameters an adapter trains and what it saves for the backward pass, from settings and layer sizes.

Follows the rules of `inject` and the families' `init_weights` without creating tensors; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from lib_lora_train.adapters.block_weights import BlockSettings, block_overrides_from_config, resolve_blocks
from lib_lora_train.adapters.families.factorization import butterfly, factorisation, lokr_shapes
from lib_lora_train.adapters.families.options import Options, options_from_config, rank_settings_from_config
from lib_lora_train.adapters.layer_names import (
    is_ia3_target,
    is_on_ia3_input,
    is_text_target,
)
from lib_lora_train.adapters.layer_overrides import (
    layer_overrides_from_config,
    override_unet_layers,
    text_layer_settings,
)
from lib_lora_train.config.family_catalog import families_with
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.runs.estimates.activation_trace import Layer, SavedForBackward


def unet_ranks(layers: Iterable[Layer], config: TrainConfig, *, architecture: str) -> dict[str, int]:
    """The trained UNet layers with their ranks; AdapterError for block lists of the wrong length."""
    known = {layer.name: layer for layer in layers}
    kind = kind_of(architecture)
    names = [name for name, layer in known.items() if layer.inputs and kind.is_target(name, "full")]
    norms = [name for name, layer in known.items() if not layer.inputs] if config.train_norm else []
    blocks = override_unet_layers(
        layer_overrides_from_config(config),
        resolve_blocks([*names, *norms], block_overrides_from_config(config), architecture=architecture),
        architecture=architecture,
    )
    ranks = {
        name: _rank(known[name], config, blocks[name])
        for name in names
        if kind.is_target(name, config.targets) and not blocks[name].is_excluded and _fits(known[name], config)
    }
    return ranks | {n: 0 for n in norms if kind.is_norm_target(n, config.targets) and not blocks[n].is_excluded}


def text_ranks(layers: Iterable[Layer], config: TrainConfig, *, architecture: str, is_packed: bool) -> dict[str, int]:
    """The trained layers of a text encoder with their ranks; `is_packed`: q, k and v are one tensor."""
    trained = [
        layer
        for layer in layers
        if layer.inputs
        and is_text_target(layer.name, config.targets, architecture=architecture)
        and _fits(layer, config, is_packed=is_packed)
    ]
    prefix = f"lora_te{1 + is_packed}" if architecture == "sdxl" else "lora_te"
    names = [layer.name for layer in trained]
    settings = text_layer_settings(layer_overrides_from_config(config), names, prefix=prefix)
    return {
        layer.name: _rank(layer, config, settings[layer.name])
        for layer in trained
        if not settings[layer.name].is_excluded
    }


def _fits(layer: Layer, config: TrainConfig, *, is_packed: bool = False) -> bool:
    if config.family == "ia3":
        return not layer.kernel and is_ia3_target(layer.name, config.targets, is_packed=is_packed)
    if config.family == "boft":
        return layer.outputs % 2 == 0
    return config.family != "glora" or not layer.kernel


def _rank(layer: Layer, config: TrainConfig, block: BlockSettings) -> int:
    return rank_settings_from_config(config).for_layer(block, is_wide=layer.kernel > 1)[0]


# --- trained parameters ------------------------------------------------------------------------


def count_parameters(layer: Layer, config: TrainConfig, rank: int) -> int:
    """The number of parameters the family trains on this layer at this rank."""
    if not layer.inputs:
        return 2 * layer.outputs
    has_scalar = config.scalar and config.family in families_with("scalar")
    return ESTIMATES[config.family].count(layer, config, rank) + (layer.inputs if config.dora else 0) + has_scalar


def _count_lora(layer: Layer, config: TrainConfig, rank: int) -> int:
    return _lora(layer.shape, rank, is_tucker=config.tucker and layer.kernel > 1)


def _count_low_rank(layer: Layer, _config: TrainConfig, rank: int) -> int:
    return _lora(layer.shape, rank, is_tucker=False)


def _count_loha(layer: Layer, config: TrainConfig, rank: int) -> int:
    return 2 * _count_lora(layer, config, rank)


def _count_lokr(layer: Layer, config: TrainConfig, rank: int) -> int:
    return sum(math.prod(one) for one in lokr_shapes(layer.shape, _options(config, rank)).values())


def _count_glora(layer: Layer, _config: TrainConfig, rank: int) -> int:
    return rank * (3 * layer.inputs + layer.outputs)


def _count_ia3(layer: Layer, _config: TrainConfig, _rank: int) -> int:
    return layer.inputs if is_on_ia3_input(layer.name) else layer.outputs


def _count_oft(layer: Layer, config: TrainConfig, rank: int) -> int:
    return layer.outputs * factorisation(layer.outputs, rank)[0] + layer.outputs * config.rescaled


def _count_boft(layer: Layer, config: TrainConfig, rank: int) -> int:
    return _boft(layer.outputs, rank) + layer.outputs * config.rescaled


def _count_full(layer: Layer, _config: TrainConfig, _rank: int) -> int:
    return math.prod(layer.shape) + layer.outputs * layer.has_bias


def _lora(shape: tuple[int, ...], rank: int, *, is_tucker: bool) -> int:
    if is_tucker:
        return rank * (shape[0] + shape[1]) + rank * rank * math.prod(shape[2:])
    return rank * (shape[0] + math.prod(shape[1:]))


def _boft(outputs: int, rank: int) -> int:
    if outputs % 2:
        return 0
    stages, width = butterfly(outputs, rank)
    return stages * outputs * width


def _options(config: TrainConfig, rank: int) -> Options:
    return replace(options_from_config(config), rank=rank)


# --- saved activations ----------------------------------------------------------------------------


def saved_by_layer(layer: Layer, config: TrainConfig, rank: int) -> SavedForBackward:
    """What the adapted layer saves for its backward pass.

    DoRA and families that recompute ΔW in the backward pass save only the input.
    """
    if not layer.inputs or config.dora:
        return SavedForBackward()
    return ESTIMATES[config.family].save(layer, config, rank)


def _save_input(_layer: Layer, _config: TrainConfig, _rank: int) -> SavedForBackward:
    return SavedForBackward()


def _save_lora(layer: Layer, config: TrainConfig, rank: int) -> SavedForBackward:
    """The input and the rank-size product; dropout also saves its mask. That of rank dropout is per sample: tiny."""
    is_tucker = config.tucker and layer.kernel > 1
    return SavedForBackward(True, rank * (1 + bool(config.network_dropout) + is_tucker))


def _save_lokr(layer: Layer, config: TrainConfig, rank: int) -> SavedForBackward:
    shapes = lokr_shapes(layer.shape, _options(config, rank))
    inputs, outputs = factorisation(layer.inputs, config.lokr_factor)[0], _big_outputs(layer, config)
    return SavedForBackward(True, inputs * outputs + (inputs * rank if "w2_b" in shapes else 0))


def _save_ia3(layer: Layer, _config: TrainConfig, _rank: int) -> SavedForBackward:
    return SavedForBackward() if is_on_ia3_input(layer.name) else SavedForBackward(False, layer.outputs)


def _save_oft(layer: Layer, config: TrainConfig, _rank: int) -> SavedForBackward:
    copies = 1 + config.rescaled * (2 if layer.kernel else 1)
    return SavedForBackward(False, layer.outputs * copies)


def _big_outputs(layer: Layer, config: TrainConfig) -> int:
    return factorisation(layer.outputs, config.lokr_factor)[1]


# --- by family --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FamilyEstimate:
    """Of a layer at a rank: how many parameters are trained, and what is saved; without DoRA and the scalar."""

    count: Callable[[Layer, TrainConfig, int], int]
    save: Callable[[Layer, TrainConfig, int], SavedForBackward]


ESTIMATES: Mapping[str, FamilyEstimate] = {
    "lora": FamilyEstimate(_count_lora, _save_lora),
    "loha": FamilyEstimate(_count_loha, _save_input),
    "lokr": FamilyEstimate(_count_lokr, _save_lokr),
    "dylora": FamilyEstimate(_count_low_rank, _save_lora),
    "glora": FamilyEstimate(_count_glora, _save_input),
    "ia3": FamilyEstimate(_count_ia3, _save_ia3),
    "oft": FamilyEstimate(_count_oft, _save_oft),
    "boft": FamilyEstimate(_count_boft, _save_input),
    "full": FamilyEstimate(_count_full, _save_input),
}
"""One row for each family. One with the `forward` of `Family` builds ΔW again, so it saves only the input."""
