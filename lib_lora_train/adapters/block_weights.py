"""Ranks, alphas and learning-rate weights per UNet block, numbered as in kohya's scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lib_lora_train.config.block_lists import MIDDLE_COUNTS, WEIGHT_COUNTS, parse_alphas, parse_ranks, parse_weights
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.core.wording import count
from lib_lora_train.models.kinds.registry import kind_of
from lib_lora_train.models.unet_layers import ldm_layer_names

_PLACE = re.compile(r"^(input_blocks|middle_block|output_blocks)\.(\d+)")


@dataclass(frozen=True)
class BlockOverrides:
    """Per-block settings as typed; all empty: every block is alike."""

    ranks: str = ""
    alphas: str = ""
    down_weights: str = ""
    mid_weights: str = ""
    up_weights: str = ""

    @property
    def is_used(self) -> bool:
        """Whether any setting is given."""
        return any((self.ranks, self.alphas, self.down_weights, self.mid_weights, self.up_weights))


def block_overrides_from_config(config: TrainConfig) -> BlockOverrides:
    """The block settings of a run."""
    return BlockOverrides(
        ranks=config.block_ranks,
        alphas=config.block_alphas,
        down_weights=config.down_lr_weight,
        mid_weights=config.mid_lr_weight,
        up_weights=config.up_lr_weight,
    )


@dataclass(frozen=True)
class BlockSettings:
    """One block's settings; None: the run's own value. A rank or weight of 0 excludes the block.

    `is_of_layer`: they were made for the single layer, so that its rank overrides that of convolutions.
    """

    rank: int | None = None
    alpha: float | None = None
    lr_weight: float = 1.0
    is_of_layer: bool = False

    @property
    def is_excluded(self) -> bool:
        return self.rank == 0 or self.lr_weight == 0


DEFAULT_BLOCK = BlockSettings()


def resolve_blocks(
    names: Iterable[str], overrides: BlockOverrides, *, architecture: str
) -> Mapping[str, BlockSettings]:
    """Layer name (diffusers') → its block's settings.

    `names` must hold every target layer, as in `ldm_layer_names`. AdapterError if the length of a list is not the
    model's number of blocks.
    """
    names = tuple(names)
    if not overrides.is_used:
        return dict.fromkeys(names, DEFAULT_BLOCK)
    if not kind_of(architecture).has_unet_blocks:
        raise AdapterError(
            "Block ranks, alphas and learning-rate weights are for the blocks of a UNet, which this model does not "
            "have. Leave them empty."
        )
    places = {name: place_of_block(ldm) for name, ldm in ldm_layer_names(names).items()}
    counts = {way: 1 + max((n for w, n in places.values() if w == way), default=0) for way in ("down", "mid", "up")}
    middle = 3 if architecture == "sdxl" else 1
    down = _fit(parse_weights(overrides.down_weights, counts["down"], WEIGHT_COUNTS), counts["down"], "down_lr_weight")
    up = _fit(parse_weights(overrides.up_weights, counts["up"], WEIGHT_COUNTS), counts["up"], "up_lr_weight")
    mid = _fit(parse_weights(overrides.mid_weights, middle, MIDDLE_COUNTS), middle, "mid_lr_weight")
    weights = {"down": down, "mid": mid, "up": up}
    before = 1 if architecture == "sdxl" else 0
    total = before + counts["down"] + middle + counts["up"] + before
    ranks = _fit(parse_ranks(overrides.ranks), total, "block_ranks")
    alphas = _fit(parse_alphas(overrides.alphas), total, "block_alphas")
    starts = {"down": before, "mid": before + counts["down"], "up": before + counts["down"] + middle}
    found = {}
    for name, (way, number) in places.items():
        if way == "before":
            way, number, position = "down", 0, 0
        elif way == "after":
            way, number, position = "up", counts["up"] - 1, total - 1
        else:
            number = min(number, middle - 1) if way == "mid" else number
            position = starts[way] + number
        found[name] = BlockSettings(
            rank=int(ranks[position]) if ranks else None,
            alpha=alphas[position] if alphas else None,
            lr_weight=weights[way][number] if weights[way] else 1.0,
        )
    return found


def place_of_block(ldm: str) -> tuple[str, int]:
    """(down, mid or up; number) of an ldm layer name; before or after for layers outside the blocks."""
    match = _PLACE.match(ldm)
    if not match:
        return ("after" if ldm.startswith("out.") else "before"), 0
    way = {"input_blocks": "down", "middle_block": "mid", "output_blocks": "up"}[match.group(1)]
    return way, int(match.group(2))


def _fit(values: tuple[float, ...], blocks: int, where: str) -> tuple[float, ...]:
    if values and len(values) != blocks:
        raise AdapterError(
            f"{where} has {count(len(values), 'number')}, but this model has {count(blocks, 'such block')}. Give "
            f"{blocks}."
        )
    return values
