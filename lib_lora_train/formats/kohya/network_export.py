"""The network of our settings for the kohya_ss GUI, and for the metadata that kohya's tools write into LoRA files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lora_train.config.block_lists import parse_ranks
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya.import_state import kohya_parameters
from lib_lora_train.formats.kohya.network_kinds import NAMES, USED_BY

_IN_ARGUMENTS = (
    *("rank_dropout", "module_dropout", "block_dims", "block_alphas"),
    *("down_lr_weight", "mid_lr_weight", "up_lr_weight"),
)
FULL_MATRIX_RANK = 100_000
"""The rank by which LyCORIS' users ask LoKr for full matrices: the GUI has no switch for them."""


def gui_network(config: TrainConfig) -> dict[str, Any]:
    """The GUI's keys of the network, except those that have a parameter's kohya name."""
    sizes: dict[str, Any] = {
        "network_alpha": config.effective_alpha,
        "conv_dim": config.rank if config.conv_rank is None else config.conv_rank,
        "conv_alpha": conv_alpha_of(config),
        "constrain": config.constraint,
        "use_cp": config.tucker and config.family == "lokr",
        "block_alphas": effective_block_alphas(config),
    }
    if config.family == "lokr" and config.full_matrix:
        sizes |= {"network_dim": FULL_MATRIX_RANK, "conv_dim": FULL_MATRIX_RANK, "conv_alpha": 1, "network_alpha": 1}
    if _is_plain(config) and config.targets in ("standard", "all"):
        return {**sizes, "LoRA_type": _plain_type(config), "LyCORIS_preset": "full"}
    return {**sizes, "LoRA_type": NAMES[config.family][0], "LyCORIS_preset": _preset(config)}


def metadata_network(config: TrainConfig) -> tuple[str, dict[str, str]]:
    """(ss_network_module, ss_network_args) as kohya's tools write them for this network: all values are text."""
    conv = {"conv_dim": config.conv_rank or config.rank, "conv_alpha": conv_alpha_of(config)}
    arguments: dict[str, Any] = dict(conv) if config.targets in ("all", "full") else {}
    arguments |= {name: value for name in _IN_ARGUMENTS if (value := getattr(config, kohya_parameters()[name].name))}
    if config.block_ranks:
        arguments["block_alphas"] = effective_block_alphas(config)
    if _is_plain(config) and config.targets in ("standard", "all"):
        if config.family == "dylora":
            return "networks.dylora", _texts({**arguments, "unit": config.dylora_unit})
        return "networks.lora", _texts(arguments)
    declared = kohya_parameters()
    own = {name: getattr(config, declared[name].name) for name in USED_BY if name not in conv}
    changed = {name: value for name, value in own.items() if value != declared[name].default}
    algo = NAMES[config.family][1]
    return "lycoris.kohya", _texts({"algo": algo, "preset": _preset(config), **arguments, **changed})


def conv_alpha_of(config: TrainConfig) -> float:
    """The alpha of 3×3 convolutions."""
    return config.effective_alpha if config.effective_conv_alpha is None else config.effective_conv_alpha


def effective_block_alphas(config: TrainConfig) -> str:
    """`block_alphas`, or those that keep the scale if only the ranks are set, as kohya's tools need; "" for none."""
    if config.block_alphas or not config.block_ranks:
        return config.block_alphas
    try:
        ranks = parse_ranks(config.block_ranks)
    except ValueError:
        return ""
    return ",".join(f"{rank * config.effective_alpha / config.rank:g}" for rank in ranks)


def _is_plain(config: TrainConfig) -> bool:
    """Whether kohya's own networks, without LyCORIS, can train it."""
    extras = (config.dora, config.tucker, config.train_norm, config.rank_stabilized, config.scalar)
    return config.family in ("lora", "dylora") and not any(extras)


def _plain_type(config: TrainConfig) -> str:
    if config.family == "dylora":
        return "Kohya DyLoRA"
    return "Kohya LoCon" if config.targets == "all" else "Standard"


def _preset(config: TrainConfig) -> str:
    if config.family == "ia3" and config.targets == "standard":
        return "ia3"
    return {"attention": "attn-only", "standard": "attn-mlp"}.get(config.targets, "full")


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
