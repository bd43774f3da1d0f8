"""What a family is asked for on one layer, and its rank and alpha there: rules without PyTorch, for planning too."""

from __future__ import annotations

from dataclasses import dataclass

from lib_lora_train.adapters.block_weights import Block
from lib_lora_train.config.train_config import TrainConfig

SCALABLE = ("lora", "loha", "lokr", "glora")
"""The families that a trained factor goes with, as in LyCORIS."""


@dataclass(frozen=True)
class Options:
    """What a family is asked for on one layer; each family reads the fields that concern it.

    rank: size of the update; for OFT and BOFT the largest block
    alpha: numerator of the scale
    use_tucker: k×k convolutions as 1×1, k×k and 1×1
    factor: LoKr's small side; -1 as square as possible
    decompose_both: LoKr splits the small matrix too
    full_matrix: LoKr splits nothing
    constraint: largest ‖Q‖ of OFT and BOFT per output channel; 0 no limit
    rescaled: OFT and BOFT also train a factor for each output channel
    unit: how many rows DyLoRA trains at a time
    on_input: iA3 scales the layer's input, not its output
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
        """s, the factor of the update at strength 1."""
        return self.alpha / self.rank


PLAIN = Options()


@dataclass(frozen=True)
class Sizes:
    """Rank and alpha everywhere, and those of convolutions that see more than one position (None: as everywhere)."""

    rank: int
    alpha: float
    conv_rank: int | None = None
    conv_alpha: float | None = None

    def on(self, block: Block, *, is_wide: bool) -> tuple[int, float]:
        """Rank and alpha of a layer in the block; a block's are not for wide convolutions with a rank of their own.

        A block with a rank and no alpha keeps the scale.
        """
        rank = self.conv_rank if is_wide and self.conv_rank is not None else self.rank
        alpha = self.conv_alpha if is_wide and self.conv_alpha is not None else self.alpha
        if is_wide and self.conv_rank is not None:
            return rank, alpha
        kept = alpha * (block.rank / rank if block.rank else 1.0)
        return block.rank or rank, kept if block.alpha is None else block.alpha


def sizes_from_config(config: TrainConfig) -> Sizes:
    """The ranks and alphas that the settings describe."""
    return Sizes(config.rank, config.effective_alpha, config.conv_rank, config.effective_conv_alpha)


def options_from_config(config: TrainConfig) -> Options:
    """The family's settings; rank and alpha are each layer's own."""
    return Options(
        use_tucker=config.tucker,
        factor=config.lokr_factor,
        decompose_both=config.decompose_both,
        full_matrix=config.full_matrix,
        constraint=config.constraint,
        rescaled=config.rescaled,
        unit=config.dylora_unit,
    )
