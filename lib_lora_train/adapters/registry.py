"""The adapter families by name, and what a run asks of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from lib_lora_train.adapters.block_weights import EVERYWHERE, Block, BlockRule, block_rule
from lib_lora_train.adapters.dropout import DropoutRates
from lib_lora_train.adapters.families.base import Family, is_wide_conv
from lib_lora_train.adapters.families.boft import Boft
from lib_lora_train.adapters.families.dora import Decomposed
from lib_lora_train.adapters.families.dylora import Dylora
from lib_lora_train.adapters.families.full import Full
from lib_lora_train.adapters.families.glora import Glora
from lib_lora_train.adapters.families.ia3 import Ia3
from lib_lora_train.adapters.families.loha import Loha
from lib_lora_train.adapters.families.lokr import Lokr
from lib_lora_train.adapters.families.lora import Lora
from lib_lora_train.adapters.families.norm import Norm
from lib_lora_train.adapters.families.oft import Oft
from lib_lora_train.adapters.families.options import PLAIN, SCALABLE, Options, Sizes, options_from_config
from lib_lora_train.adapters.families.scalar import Scaled
from lib_lora_train.adapters.layer_names import is_on_ia3_input
from lib_lora_train.adapters.precisions import PRECISIONS
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError

FAMILIES: Mapping[str, Family] = {
    family.NAME: family for family in (Lora(), Loha(), Lokr(), Dylora(), Glora(), Ia3(), Oft(), Boft(), Full())
}
NORM = Norm()
SAME_EVERYWHERE = BlockRule()
DECOMPOSABLE = ("lora", "loha", "lokr")


@dataclass(frozen=True)
class AdapterSpec:
    """Which adapter on which layers.

    `targets` is one of config.TARGETS; `conv_rank` and `conv_alpha` are for convolutions that see more than one
    position, None: as the others. `options` holds the family's other settings; its rank and alpha are not used.
    `dtype` is the number format that the adapter's numbers and their gradients are kept in.
    """

    family: str = "lora"
    rank: int = 16
    alpha: float = 16.0
    targets: str = "standard"
    unet: bool = True
    text_encoder: bool = True
    conv_rank: int | None = None
    conv_alpha: float | None = None
    is_dora: bool = False
    has_scalar: bool = False
    rank_stabilized: bool = False
    train_norm: bool = False
    options: Options = PLAIN
    blocks: BlockRule = SAME_EVERYWHERE
    dtype: torch.dtype = torch.float32

    def options_for(self, layer: nn.Module, name: str, block: Block = EVERYWHERE) -> Options:
        """The options of the layer with this module name, in its block; see `Sizes.on`."""
        sizes = Sizes(self.rank, self.alpha, self.conv_rank, self.conv_alpha)
        rank, alpha = sizes.on(block, is_wide=is_wide_conv(layer))
        if self.rank_stabilized:
            alpha *= rank**0.5  # hosts divide by the rank; Kalajdzievski 2023 by its root
        return replace(self.options, rank=rank, alpha=alpha, on_input=is_on_ia3_input(name))


def spec_from_config(config: TrainConfig) -> AdapterSpec:
    """The adapter that the settings describe."""
    return AdapterSpec(
        family=config.family,
        rank=config.rank,
        alpha=config.effective_alpha,
        targets=config.targets,
        unet=config.train_unet,
        text_encoder=config.train_text_encoder,
        conv_rank=config.conv_rank,
        conv_alpha=config.effective_conv_alpha,
        is_dora=config.dora,
        has_scalar=config.scalar and config.family in SCALABLE,
        rank_stabilized=config.rank_stabilized,
        train_norm=config.train_norm,
        options=options_from_config(config),
        blocks=block_rule(config),
        dtype=PRECISIONS[config.lora_precision],
    )


def chance_from_config(config: TrainConfig) -> DropoutRates:
    """The dropouts that the settings describe."""
    return DropoutRates(config.network_dropout, config.rank_dropout, config.module_dropout)


def family_of(spec: AdapterSpec) -> Family:
    """The family of `spec`, with a trained factor and DoRA around it if asked for; AdapterError for what is not."""
    if spec.family not in FAMILIES:
        raise AdapterError(f"There is no adapter family {spec.family!r}. Known: {', '.join(FAMILIES)}.")
    if spec.has_scalar and spec.family not in SCALABLE:
        raise AdapterError(
            f"A scalar does not go with {spec.family}, only with {', '.join(SCALABLE)}. Switch scalar off."
        )
    family = Scaled(FAMILIES[spec.family]) if spec.has_scalar else FAMILIES[spec.family]
    if not spec.is_dora:
        return family
    if spec.family not in DECOMPOSABLE:
        raise AdapterError(
            f"DoRA does not go with {spec.family}, only with {', '.join(DECOMPOSABLE)}. Switch dora off."
        )
    return Decomposed(family)
