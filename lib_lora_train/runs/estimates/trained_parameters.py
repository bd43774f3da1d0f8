"""Count the parameters an adapter trains and what it saves for the backward pass, from settings and layer sizes.

Follows the rules of `inject` and the families' `init_weights` without creating tensors; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from lib_lora_train.adapters.block_weights import BlockSettings, block_overrides_from_config, resolve_blocks
from lib_lora_train.adapters.families.factorization import butterfly, factorisation, lokr_shapes
from lib_lora_train.adapters.families.options import Options, options_from_config, rank_settings_from_config
from lib_lora_train.adapters.layer_names import (
    is_ia3_target,
    is_norm_target,
    is_on_ia3_input,
    is_text_target,
    is_unet_target,
)
from lib_lora_train.config.settings.network import SCALAR_FAMILIES
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.runs.estimates.activation_trace import Layer, SavedForBackward


def unet_ranks(layers: Iterable[Layer], config: TrainConfig, *, architecture: str) -> dict[str, int]:
    """The trained UNet layers with their ranks; AdapterError for block lists of the wrong length."""
    known = {layer.name: layer for layer in layers}
    names = [name for name, layer in known.items() if layer.inputs and is_unet_target(name, "full")]
    norms = [name for name, layer in known.items() if not layer.inputs] if config.train_norm else []
    blocks = resolve_blocks([*names, *norms], block_overrides_from_config(config), architecture=architecture)
    ranks = {
        name: _rank(known[name], config, blocks[name])
        for name in names
        if is_unet_target(name, config.targets) and not blocks[name].is_excluded and _fits(known[name], config)
    }
    return ranks | {n: 0 for n in norms if is_norm_target(n, config.targets) and not blocks[n].is_excluded}


def text_ranks(layers: Iterable[Layer], config: TrainConfig, *, architecture: str, is_packed: bool) -> dict[str, int]:
    """The trained layers of a text encoder with their ranks; `is_packed`: q, k and v are one tensor."""
    return {
        layer.name: config.rank
        for layer in layers
        if layer.inputs
        and is_text_target(layer.name, config.targets, architecture=architecture)
        and _fits(layer, config, is_packed=is_packed)
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
    shape = layer.shape
    width = math.prod(shape[1:])
    is_tucker = config.tucker and layer.kernel > 1
    outputs, inputs = shape[:2]
    counts: Mapping[str, int] = {
        "lora": _lora(shape, rank, is_tucker=is_tucker),
        "dylora": rank * (width + outputs),
        "loha": 2 * _lora(shape, rank, is_tucker=is_tucker),
        "lokr": sum(math.prod(one) for one in lokr_shapes(shape, _options(config, rank)).values()),
        "glora": rank * (3 * inputs + outputs),
        "ia3": inputs if is_on_ia3_input(layer.name) else outputs,
        "oft": outputs * factorisation(outputs, rank)[0] + outputs * config.rescaled,
        "boft": _boft(outputs, rank) + outputs * config.rescaled,
        "full": math.prod(shape) + outputs * layer.has_bias,
    }
    return counts[config.family] + (inputs if config.dora else 0) + (config.scalar and config.family in SCALAR_FAMILIES)


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

    DoRA and families that recompute ΔW in the backward pass save only the input. Dropout saves a second copy and its
    mask.
    """
    if not layer.inputs or config.dora or config.family in ("loha", "glora", "boft", "full"):
        return SavedForBackward()
    if config.family == "oft":
        copies = 1 + config.rescaled * (2 if layer.kernel else 1)
        return SavedForBackward(False, layer.outputs * copies)
    if config.family == "ia3":
        return SavedForBackward() if is_on_ia3_input(layer.name) else SavedForBackward(False, layer.outputs)
    if config.family == "lokr":
        shapes = lokr_shapes(layer.shape, _options(config, rank))
        inputs, outputs = factorisation(layer.inputs, config.lokr_factor)[0], _big_outputs(layer, config)
        return SavedForBackward(True, inputs * outputs + (inputs * rank if "w2_b" in shapes else 0))
    drops = bool(config.network_dropout) + bool(config.rank_dropout)
    is_tucker = config.tucker and layer.kernel > 1
    return SavedForBackward(True, rank * (1 + 2 * drops + is_tucker))


def _big_outputs(layer: Layer, config: TrainConfig) -> int:
    return factorisation(layer.outputs, config.lokr_factor)[1]
