"""Facts about the families (kinds of LoRA): which settings each uses, its learning rates.

They are used to validate settings without importing PyTorch; `adapters/families/` has the mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lib_lora_train.config.family_support import support_of


@dataclass(frozen=True)
class FamilyRates:
    """Learning rates of a family that LoRA's do not suit.

    Guides start with `usual`. Below `low` nothing is learnt, and a family with such a limit is exempt from the
    optimiser's limits, which are LoRA's. Above `high` images look overcooked. The advice completes the sentence
    “5e-05 is low for FAMILY, …”.
    """

    usual: float
    usual_text: float
    advice: str
    text_advice: str = ""
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True)
class FamilyInfo:
    """One family.

    `uses`: those of the `SELECTIVE` settings that have an effect with it. A rank above `max_rank`, or `max_conv_rank`
    in convolutions, is too high. `rates`: None if LoRA's learning rates suit it.
    """

    uses: tuple[str, ...]
    max_rank: int | None = None
    max_conv_rank: int | None = None
    rates: FamilyRates | None = None


SELECTIVE = (
    *("alpha", "conv_rank", "conv_alpha", "rank_stabilized", "block_ranks", "block_alphas"),
    *("dora", "scalar", "tucker", "lokr_factor", "decompose_both", "full_matrix", "dylora_unit"),
    *("constraint", "rescaled", "network_dropout", "rank_dropout", "scale_weight_norms"),
)
"""Settings that have an effect with some families only. All others work with every family."""

_BLOCKS = ("block_ranks", "block_alphas", "rank_dropout", "scale_weight_norms")
_LOW_RANK = (*_BLOCKS, "alpha", "conv_rank", "conv_alpha", "rank_stabilized")
_LYCORIS = (*_LOW_RANK, "dora", "scalar", "tucker")
_ROTATION = ("conv_rank", "constraint", "rescaled", "rank_dropout")

FAMILY_CATALOG: Mapping[str, FamilyInfo] = {
    "lora": FamilyInfo((*_LYCORIS, "network_dropout"), max_conv_rank=64),
    "loha": FamilyInfo(_LYCORIS, max_rank=32, max_conv_rank=32),
    "lokr": FamilyInfo((*_LYCORIS, "lokr_factor", "decompose_both", "full_matrix")),
    "dylora": FamilyInfo((*_LOW_RANK, "dylora_unit", "network_dropout"), max_conv_rank=64),
    "glora": FamilyInfo((*_BLOCKS, "scalar"), max_rank=64),
    "ia3": FamilyInfo(
        ("scale_weight_norms",),
        rates=FamilyRates(
            usual=5e-3,
            usual_text=2e-3,
            advice="whose few factors need 5e-3 to 1e-2",
            text_advice="whose few factors need 2e-3 to 1e-2",
            low=1e-3,
        ),
    ),
    "oft": FamilyInfo(_ROTATION),
    "boft": FamilyInfo(_ROTATION),
    "full": FamilyInfo(
        ("rank_dropout", "scale_weight_norms"),
        rates=FamilyRates(
            usual=1e-5,
            usual_text=1e-5,
            advice="which trains whole layers. 1e-6 to 1e-5 is usual",
            high=5e-5,
        ),
    ),
}


def families_with(setting: str) -> tuple[str, ...]:
    """The families that use this one of the `SELECTIVE` settings."""
    return tuple(name for name, family in FAMILY_CATALOG.items() if setting in family.uses)


def families_forge_ignores() -> tuple[str, ...]:
    """The families whose files Forge does not read."""
    return tuple(name for name in FAMILY_CATALOG if support_of("Forge", name).effect == "ignored")
