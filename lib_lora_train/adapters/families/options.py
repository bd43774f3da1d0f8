"""A family's options on one layer, and the rules for its rank and alpha; without PyTorch, for use in planning."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.adapters.block_weights import BlockSettings
from lib_lora_train.config.train_config import TrainConfig


@dataclass(frozen=True)
class Options:
    """A family's options on one layer; each family reads the fields that concern it.

    Args:
        rank: of the update; for OFT and BOFT the largest block size
        alpha: numerator of the scale
        use_tucker: decompose k×k convolutions into 1×1, k×k and 1×1
        factor: LoKr's small side; -1: as square as possible
        decompose_both: LoKr also decomposes the small matrix
        full_matrix: LoKr decomposes neither matrix
        constraint: largest ‖Q‖ of OFT and BOFT per output channel; 0: no limit
        rescaled: OFT and BOFT also train a factor for each output channel
        unit: how many rows DyLoRA trains at a time
        on_input: (IA)³ scales the layer's input, not its output
    """

    rank: int = 16
    alpha: float = 16.0
    use_tucker: bool = False
    factor: int = -1
    decompose_both: bool = False
    full_matrix: bool = False
    constraint: float = 0.0
    rescaled: bool = False
    unit: int = 1
    on_input: bool = False

    @property
    def scale(self) -> float:
        """s, the update's factor at strength 1."""
        return self.alpha / self.rank


PLAIN = Options()


@dataclass(frozen=True)
class RankSettings:
    """Rank and alpha of a run, and those of convolutions larger than 1×1 (None: the same)."""

    rank: int
    alpha: float
    conv_rank: int | None = None
    conv_alpha: float | None = None

    def for_layer(self, block: BlockSettings, *, is_wide: bool) -> tuple[int, float]:
        """Rank and alpha of a layer in the block; `conv_rank`, if set, overrides the block's for wide convolutions,
        but not a rank of the single layer.

        A block with a rank but no alpha keeps the scale.
        """
        rank = self.conv_rank if is_wide and self.conv_rank is not None else self.rank
        alpha = self.conv_alpha if is_wide and self.conv_alpha is not None else self.alpha
        if is_wide and self.conv_rank is not None and not block.is_of_layer:
            return rank, alpha
        same_scale = alpha * (block.rank / rank if block.rank else 1.0)
        return block.rank or rank, same_scale if block.alpha is None else block.alpha


def rank_settings_from_config(config: TrainConfig) -> RankSettings:
    """The ranks and alphas that the settings describe."""
    return RankSettings(config.rank, config.effective_alpha, config.conv_rank, config.effective_conv_alpha)


def options_from_config(config: TrainConfig) -> Options:
    """The family's settings; rank and alpha are set for each layer later."""
    return Options(
        use_tucker=config.tucker,
        factor=config.lokr_factor,
        decompose_both=config.decompose_both,
        full_matrix=config.full_matrix,
        constraint=config.constraint,
        rescaled=config.rescaled,
        unit=config.dylora_unit,
    )
