"""The adapter families by name, and the adapter that a run's settings describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from lib_lora_train.adapters.block_weights import (
    DEFAULT_BLOCK,
    BlockOverrides,
    BlockSettings,
    block_overrides_from_config,
)
from lib_lora_train.adapters.dropout import DropoutRates
from lib_lora_train.adapters.families.base import Family, is_wide_conv
from lib_lora_train.adapters.families.boft import Boft
from lib_lora_train.adapters.families.dora import Dora
from lib_lora_train.adapters.families.dylora import Dylora
from lib_lora_train.adapters.families.full import Full
from lib_lora_train.adapters.families.glora import Glora
from lib_lora_train.adapters.families.ia3 import Ia3
from lib_lora_train.adapters.families.loha import Loha
from lib_lora_train.adapters.families.lokr import Lokr
from lib_lora_train.adapters.families.lora import Lora
from lib_lora_train.adapters.families.norm import Norm
from lib_lora_train.adapters.families.oft import Oft
from lib_lora_train.adapters.families.options import PLAIN, Options, RankSettings, options_from_config
from lib_lora_train.adapters.families.scalar import WithScalar
from lib_lora_train.adapters.layer_names import is_on_ia3_input
from lib_lora_train.adapters.layer_overrides import (
    NO_LAYER_OVERRIDES,
    LayerOverrides,
    layer_overrides_from_config,
)
from lib_lora_train.config.family_catalog import families_with
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.models.dtypes import DTYPES

FAMILIES: Mapping[str, Family] = {
    family.NAME: family for family in (Lora(), Loha(), Lokr(), Dylora(), Glora(), Ia3(), Oft(), Boft(), Full())
}
NORM = Norm()
NO_BLOCK_OVERRIDES = BlockOverrides()


@dataclass(frozen=True)
class AdapterSpec:
    """Which adapter on which layers.

    `targets` is one of config.TARGETS; `conv_rank` and `conv_alpha` are for convolutions larger than 1×1, None: the
    same as for other layers. `options` holds the family's other settings; its rank and alpha are not used. `dtype` is
    that of the adapter's weights and their gradients.
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
    blocks: BlockOverrides = NO_BLOCK_OVERRIDES
    layers: LayerOverrides = NO_LAYER_OVERRIDES
    dtype: torch.dtype = torch.float32

    def options_for(self, layer: nn.Module, name: str, block: BlockSettings = DEFAULT_BLOCK) -> Options:
        """The options of the layer with this module name, in its block."""
        sizes = RankSettings(self.rank, self.alpha, self.conv_rank, self.conv_alpha)
        rank, alpha = sizes.for_layer(block, is_wide=is_wide_conv(layer))
        if self.rank_stabilized:
            alpha *= rank**0.5  # webuis divide by the rank, rsLoRA (Kalajdzievski 2023) by its root
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
        has_scalar=config.scalar and config.family in families_with("scalar"),
        rank_stabilized=config.rank_stabilized,
        train_norm=config.train_norm,
        options=options_from_config(config),
        blocks=block_overrides_from_config(config),
        layers=layer_overrides_from_config(config),
        dtype=DTYPES[config.lora_precision],
    )


def dropout_from_config(config: TrainConfig) -> DropoutRates:
    """The dropout rates of the settings."""
    return DropoutRates(config.network_dropout, config.rank_dropout, config.module_dropout)


def family_of(spec: AdapterSpec) -> Family:
    """The family of `spec`, wrapped in a trained scalar and DoRA if set; AdapterError if it does not support them."""
    if spec.family not in FAMILIES:
        raise AdapterError(f"{spec.family!r} is not an adapter family. Choose one of {', '.join(FAMILIES)}.")
    if spec.has_scalar:
        _require(spec.family, "scalar", title="scalar")
    family = WithScalar(FAMILIES[spec.family]) if spec.has_scalar else FAMILIES[spec.family]
    if not spec.is_dora:
        return family
    _require(spec.family, "dora", title="DoRA")
    return Dora(family)


def _require(family: str, setting: str, *, title: str) -> None:
    """AdapterError unless the family uses this setting."""
    names = families_with(setting)
    if family not in names:
        raise AdapterError(f"{title} does not work with {family}, only with {', '.join(names)}. Turn {setting} off.")
