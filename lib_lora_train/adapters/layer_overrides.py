"""Ranks, alphas and learning-rate factors of single layers; they override those of blocks and of convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from lib_lora_train.adapters.block_weights import DEFAULT_BLOCK, BlockSettings
from lib_lora_train.adapters.layer_names import text_key
from lib_lora_train.config.layer_patterns import LayerRule, parse_layer_ranks, parse_layer_weights
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.layer_matching import first_fit
from lib_lora_train.models.unet_layers import ldm_layer_names


@dataclass(frozen=True)
class LayerOverrides:
    """The settings `layer_ranks` and `layer_lr_weights` as typed."""

    ranks: tuple[str, ...] = ()
    lr_weights: tuple[str, ...] = ()

    @property
    def is_used(self) -> bool:
        """Whether any setting is given."""
        return bool(self.ranks or self.lr_weights)

    def apply(self, block: BlockSettings, names: tuple[str, ...]) -> BlockSettings:
        """The settings of the layer that has these names, in its block. AdapterError for a pattern without an end."""
        if not self.is_used:
            return block
        try:
            rank, weight = first_fit(self._ranks, names), first_fit(self._weights, names)
        except ValueError as reason:
            raise AdapterError(f"layer_ranks, layer_lr_weights: {reason}.") from None
        if rank is not None:
            block = replace(block, rank=int(rank.value), alpha=rank.alpha, is_of_layer=True)
        return block if weight is None else replace(block, lr_weight=weight.value)

    @cached_property
    def _ranks(self) -> tuple[LayerRule, ...]:
        return parse_layer_ranks(self.ranks)

    @cached_property
    def _weights(self) -> tuple[LayerRule, ...]:
        return parse_layer_weights(self.lr_weights)


NO_LAYER_OVERRIDES = LayerOverrides()


def layer_overrides_from_config(config: TrainConfig) -> LayerOverrides:
    """The settings of single layers of a run."""
    return LayerOverrides(config.layer_ranks, config.layer_lr_weights)


def override_unet_layers(
    overrides: LayerOverrides, blocks: Mapping[str, BlockSettings], *, architecture: str
) -> Mapping[str, BlockSettings]:
    """The settings of every UNet layer by its module name, from those of its block.

    A pattern can have the layer's name in diffusers, in the original UNet (as kohya has it for SDXL) or in files.
    """
    if not overrides.is_used:
        return blocks
    kind = kind_of(architecture)
    keys = kind.lora_keys(list(blocks))
    originals = ldm_layer_names(blocks) if kind.has_unet_blocks else {}
    return {
        name: overrides.apply(block, (name, originals.get(name, name), keys.get(name, name)))
        for name, block in blocks.items()
    }


def text_layer_settings(overrides: LayerOverrides, names: Iterable[str], *, prefix: str) -> dict[str, BlockSettings]:
    """The settings of a text encoder's layers; a pattern can have the name in transformers or in files."""
    return {
        name: overrides.apply(
            DEFAULT_BLOCK, (name, f"text_model.{name.removeprefix('text_model.')}", text_key(name, prefix))
        )
        for name in names
    }
