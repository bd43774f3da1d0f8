"""The network of our settings for the kohya_ss GUI, for sd-scripts, and for the metadata of LoRA files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lib_lora_train.config.block_lists import parse_ranks
from lib_lora_train.config.train_config import TrainConfig
from lib_lora_train.formats.kohya.import_state import kohya_parameters
from lib_lora_train.formats.kohya.network_kinds import NAMES, USED_BY, NetworkKind, lycoris_kind, own_kind

_BLOCKS = ("block_dims", "block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight")
_IN_ARGUMENTS = ("rank_dropout", "module_dropout", *_BLOCKS)
_LORAPLUS = ("loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
NETWORK_ARGUMENTS = (*_IN_ARGUMENTS, *_LORAPLUS, *USED_BY)
"""The kohya names of our parameters that are no arguments of sd-scripts, but of its networks."""

FULL_MATRIX_RANK = 100_000
"""The rank by which LyCORIS' users ask LoKr for full matrices: the GUI has no switch for them."""


def gui_network(config: TrainConfig) -> dict[str, Any]:
    """The GUI's keys of the network, except those that have a parameter's kohya name."""
    sizes: dict[str, Any] = {
        "network_alpha": config.effective_alpha,
        "conv_dim": _conv_rank(config),
        "conv_alpha": conv_alpha_of(config),
        "constrain": config.constraint,
        "use_cp": config.tucker and config.family == "lokr",
        "block_alphas": effective_block_alphas(config),
    }
    if config.family == "lokr" and config.full_matrix:
        sizes |= {"network_dim": FULL_MATRIX_RANK, "conv_dim": FULL_MATRIX_RANK, "conv_alpha": 1, "network_alpha": 1}
    if _is_plain(config):
        return {**sizes, "LoRA_type": _plain_type(config), "LyCORIS_preset": "full"}
    return {**sizes, "LoRA_type": NAMES[config.family][0], "LyCORIS_preset": _preset(config)}


def script_network(config: TrainConfig) -> tuple[str, dict[str, str]]:
    """(network_module, network_args) of sd-scripts: what its network, or LyCORIS', reads of our settings, as text."""
    module, arguments = metadata_network(config)
    kind = _kind(config)
    declared = kohya_parameters()
    ratios = {name: getattr(config, declared[name].name) for name in _LORAPLUS}
    arguments |= _texts({name: ratio for name, ratio in ratios.items() if ratio})
    if kind.is_lycoris and config.family == "dylora":
        arguments["block_size"] = str(config.dylora_unit)
        arguments.pop("unit", None)
    if kind.is_lycoris and config.dora and "dora_wd" in kind.reads:
        arguments["wd_on_output"] = "False"  # over inputs, as webuis read it
    if "conv_dim" in arguments:
        arguments["conv_dim"] = str(_conv_rank(config))
    unread = {*_IN_ARGUMENTS, *USED_BY} - kind.reads
    return module, {name: value for name, value in arguments.items() if name not in unread}


def metadata_network(config: TrainConfig) -> tuple[str, dict[str, str]]:
    """(ss_network_module, ss_network_args) as kohya's tools write them for this network: all values are text."""
    conv = {"conv_dim": config.conv_rank or config.rank, "conv_alpha": conv_alpha_of(config)}
    arguments: dict[str, Any] = dict(conv) if config.targets in ("all", "full") else {}
    arguments |= {name: value for name in _IN_ARGUMENTS if (value := getattr(config, kohya_parameters()[name].name))}
    if config.block_ranks:
        arguments["block_alphas"] = effective_block_alphas(config)
    if _is_plain(config):
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


def _conv_rank(config: TrainConfig) -> int:
    """The rank of 3×3 convolutions; kohya's own DyLoRA refuses another one than for other layers."""
    is_own_dylora = config.family == "dylora" and _is_plain(config)
    return config.rank if config.conv_rank is None or is_own_dylora else config.conv_rank


def effective_block_alphas(config: TrainConfig) -> str:
    """`block_alphas`, or those that keep the scale if only the ranks are set, as kohya's tools need; "" for none."""
    if config.block_alphas or not config.block_ranks:
        return config.block_alphas
    try:
        ranks = parse_ranks(config.block_ranks)
    except ValueError:
        return ""
    return ",".join(f"{rank * config.effective_alpha / config.rank:g}" for rank in ranks)


def _kind(config: TrainConfig) -> NetworkKind:
    """The network of kohya's tools or LyCORIS that trains it."""
    own = own_kind("networks.dylora" if config.family == "dylora" else "networks.lora", "")
    if own and _is_plain(config):
        return own
    return lycoris_kind(NAMES[config.family][1], _preset(config), "")


def _is_plain(config: TrainConfig) -> bool:
    """Whether kohya's own networks, without LyCORIS, can train it."""
    extras = (config.dora, config.tucker, config.train_norm, config.rank_stabilized, config.scalar)
    return config.family in ("lora", "dylora") and not any(extras) and config.targets in ("standard", "all")


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
