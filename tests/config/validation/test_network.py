"""Validation of the network settings: usual limits, what webuis cannot read, settings without effect."""

from __future__ import annotations

from typing import Any

import pytest

from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.config.validation.network import validate_network


def _found(**values: Any) -> set[tuple[str, str]]:
    return {(p.level, p.where) for p in validate_network(TrainConfig(**values))}


def test_defaults_of_the_common_families_have_no_problems() -> None:
    for family in ("lora", "loha", "lokr"):
        assert _found(family=family) == set()
    assert _found(family="dylora", dylora_unit=4, batch_size=1, gradient_accumulation=4) == set()


@pytest.mark.parametrize(
    ("values", "finding"),
    [
        ({"targets": "all", "rank": 128}, ("warning", "rank")),
        ({"targets": "all", "rank": 128, "conv_rank": 96}, ("warning", "conv_rank")),
        ({"family": "loha", "rank": 64}, ("warning", "rank")),
        ({"family": "dylora", "batch_size": 4}, ("warning", "batch_size")),
        ({"family": "dylora", "rank": 16, "dylora_unit": 5}, ("warning", "dylora_unit")),
        ({"family": "glora", "targets": "all"}, ("warning", "targets")),
        ({"family": "full"}, ("warning", "family")),
        ({"family": "full", "learning_rate": 1e-4}, ("warning", "learning_rate")),
        ({"family": "ia3", "learning_rate": 1e-4}, ("warning", "learning_rate")),
        ({"family": "ia3", "unet_lr": 1e-4}, ("warning", "unet_lr")),
        ({"family": "ia3", "learning_rate": 5e-3, "text_encoder_lr": 5e-5}, ("warning", "text_encoder_lr")),
        ({"family": "ia3", "learning_rate": 1e-4, "train_unet": False}, ("warning", "learning_rate")),
        ({"family": "loha", "targets": "all", "conv_rank": 48}, ("warning", "conv_rank")),
        ({"family": "ia3", "dora": True}, ("error", "dora")),
        ({"alpha": 64.0}, ("warning", "alpha")),
        ({"alpha": 0.1}, ("warning", "alpha")),
        ({"alpha": 16.0, "rank_stabilized": True}, ("warning", "alpha")),
        ({"family": "glora", "alpha": 4.0}, ("hint", "alpha")),
        ({"family": "lokr", "full_matrix": True, "alpha": 4.0}, ("hint", "alpha")),
        ({"lokr_factor": 8}, ("hint", "lokr_factor")),
        ({"family": "oft", "conv_rank": 8}, ("hint", "conv_rank")),
        ({"conv_rank": 8}, ("hint", "conv_rank")),
        ({"tucker": True}, ("hint", "tucker")),
        ({"constraint": 0.1}, ("hint", "constraint")),
        ({"train_norm": True, "targets": "attention"}, ("hint", "train_norm")),
        ({"block_ranks": "4,4"}, ("error", "block_ranks")),
        ({"up_lr_weight": "a"}, ("error", "up_lr_weight")),
        ({"up_lr_weight": "sine", "train_unet": False}, ("hint", "up_lr_weight")),
        ({"family": "oft", "block_ranks": ",".join("4" * 25)}, ("hint", "block_ranks")),
        ({"rank_dropout": 0.6}, ("warning", "rank_dropout")),
        ({"network_dropout": 0.1, "dora": True}, ("hint", "network_dropout")),
        ({"rank_dropout": 0.1, "family": "ia3"}, ("hint", "rank_dropout")),
        ({"scale_weight_norms": 1.0, "family": "boft"}, ("hint", "scale_weight_norms")),
        ({"scale_weight_norms": 1.0, "optimizer": "AdamWScheduleFree"}, ("warning", "scale_weight_norms")),
    ],
)
def test_a_problematic_combination_is_reported(values: dict[str, Any], finding: tuple[str, str]) -> None:
    assert finding in _found(**values)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"targets": "all", "rank": 128, "conv_rank": 64}, "rank"),
        ({"targets": "all", "rank": 64}, "rank"),
        ({"family": "loha", "rank": 32}, "rank"),
        ({"family": "loha", "rank": 32, "targets": "all", "conv_rank": 32}, "conv_rank"),
        ({"family": "ia3", "learning_rate": 5e-3, "text_encoder_lr": 2e-3}, "text_encoder_lr"),
        ({"family": "lokr", "targets": "all", "conv_rank": 512}, "conv_rank"),
        ({"family": "lokr", "tucker": True, "targets": "standard"}, "family"),
        ({"alpha": 4.0, "rank_stabilized": True}, "alpha"),
        ({"family": "full", "learning_rate": 1e-5}, "learning_rate"),
        ({"family": "ia3", "optimizer": "Prodigy", "learning_rate": 1.0}, "learning_rate"),
        ({"conv_rank": 8, "targets": "all"}, "conv_rank"),
        ({"family": "oft", "constraint": 0.1, "rescaled": True}, "constraint"),
        ({"up_lr_weight": "sine+.5", "mid_lr_weight": "0.5"}, "up_lr_weight"),
        ({"family": "lokr", "module_dropout": 0.1}, "module_dropout"),
        ({"family": "lokr", "rank_dropout": 0.1}, "rank_dropout"),
        ({"dora": True, "rank_dropout": 0.1}, "rank_dropout"),
    ],
)
def test_a_sound_combination_is_not_reported(values: dict[str, Any], place: str) -> None:
    assert place not in {where for _, where in _found(**values)}
