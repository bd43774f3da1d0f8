"""How many numbers an adapter trains, and what it keeps between forward and backward, from settings and layer sizes.

The same rules as `inject` and the families' `init_weights`, without making a tensor; a test holds both together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from lib_lora_train.adapters.block_weights import Block, block_rule, blocks_of
from lib_lora_train.adapters.families.factorization import butterfly, factorisation, lokr_shapes
from lib_lora_train.adapters.families.options import SCALABLE, Options, options_from_config, sizes_from_config
from lib_lora_train.adapters.layer_names import (
    is_ia3_target,
    is_norm_target,
    is_on_ia3_input,
    is_text_target,
    is_unet_target,
)
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.runs.estimates.activation_trace import Keeps, Layer


def unet_ranks(layers: Iterable[Layer], config: TrainConfig, *, family: str) -> dict[str, int]:
    """The UNet's layers that are trained, with their ranks; AdapterError for block lists of the wrong length."""
    known = {layer.name: layer for layer in layers}
    wanted = [name for name, layer in known.items() if layer.inputs and is_unet_target(name, "full")]
    norms = [name for name, layer in known.items() if not layer.inputs] if config.train_norm else []
    blocks = blocks_of([*wanted, *norms], block_rule(config), family=family)
    ranks = {
        name: _rank(known[name], config, blocks[name])
        for name in wanted
        if is_unet_target(name, config.targets) and not blocks[name].is_left_out and _fits(known[name], config)
    }
    return ranks | {n: 0 for n in norms if is_norm_target(n, config.targets) and not blocks[n].is_left_out}


def text_ranks(layers: Iterable[Layer], config: TrainConfig, *, family: str, is_packed: bool) -> dict[str, int]:
    """A text encoder's layers that are trained, with their ranks; `is_packed`: q, k and v are one tensor there."""
    return {
        layer.name: config.rank
        for layer in layers
        if layer.inputs
        and is_text_target(layer.name, config.targets, family=family)
        and _fits(layer, config, is_packed=is_packed)
    }


def _fits(layer: Layer, config: TrainConfig, *, is_packed: bool = False) -> bool:
    if config.family == "ia3":
        return not layer.kernel and is_ia3_target(layer.name, config.targets, is_packed=is_packed)
    if config.family == "boft":
        return layer.outputs % 2 == 0
    return config.family != "glora" or not layer.kernel


def _rank(layer: Layer, config: TrainConfig, block: Block) -> int:
    return sizes_from_config(config).on(block, is_wide=layer.kernel > 1)[0]


# --- numbers to train ---------------------------------------------------------------------------


def trained_numbers(layer: Layer, config: TrainConfig, rank: int) -> int:
    """How many numbers the family trains on this layer at this rank."""
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
    return counts[config.family] + (inputs if config.dora else 0) + (config.scalar and config.family in SCALABLE)


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


# --- numbers kept -------------------------------------------------------------------------------


def kept_of(layer: Layer, config: TrainConfig, rank: int) -> Keeps:
    """What the adapted layer keeps for its backward pass.

    Families that build ΔW anew in the backward pass keep the input only, and so does DoRA; what is dropped at random
    is kept once more with its mask.
    """
    if not layer.inputs or config.dora or config.family in ("loha", "glora", "boft", "full"):
        return Keeps()
    if config.family == "oft":
        copies = 1 + config.rescaled * (2 if layer.kernel else 1)
        return Keeps(False, layer.outputs * copies)
    if config.family == "ia3":
        return Keeps() if is_on_ia3_input(layer.name) else Keeps(False, layer.outputs)
    if config.family == "lokr":
        shapes = lokr_shapes(layer.shape, _options(config, rank))
        inputs, outputs = factorisation(layer.inputs, config.lokr_factor)[0], _big_outputs(layer, config)
        return Keeps(True, inputs * outputs + (inputs * rank if "w2_b" in shapes else 0))
    drops = bool(config.network_dropout) + bool(config.rank_dropout)
    is_tucker = config.tucker and layer.kernel > 1
    return Keeps(True, rank * (1 + 2 * drops + is_tucker))


def _big_outputs(layer: Layer, config: TrainConfig) -> int:
    return factorisation(layer.outputs, config.lokr_factor)[1]
