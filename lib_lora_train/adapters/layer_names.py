"""Which layers a target preset means, and what the webui calls them.

Everything here works on module names as strings, so that no class name of a library version matters.
Files are written with diffusers' block names for SD1 and SD2 and with the original ldm block names for
SDXL: the two spellings that every webui resolves. The one name of the first that A1111 leaves out, the last norm's,
is written as ldm's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_ATTENTION = re.compile(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$")
_TRANSFORMER = re.compile(r"(^|\.)attentions\.\d+\.")
_RESIDUAL = re.compile(r"(^|\.)(resnets|downsamplers|upsamplers)\.\d+\.")
_TEXT_ATTENTION = re.compile(r"(^|\.)layers\.(\d+)\.self_attn\.(q|k|v|out)_proj$")
_TEXT_MLP = re.compile(r"(^|\.)layers\.(\d+)\.mlp\.fc[12]$")

_IA3 = re.compile(r"(to_k|to_v|ff\.net\.2|[kv]_proj|mlp\.fc2)$")
_IA3_INPUT = re.compile(r"(ff\.net\.2|mlp\.fc2)$")

_OUTER = re.compile(r"^(conv_in|conv_out|conv_norm_out|time_embedding\.linear_[12]|add_embedding\.linear_[12])$")

SD2_TEXT_LAYERS = 23
"""SD2 was trained on the last but one layer of OpenCLIP-H; the 24th never reaches the UNet."""

_LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_LDM_OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LAST_NORM = "conv_norm_out"
_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)$")
_MIDDLE = re.compile(r"^mid_block\.(resnets|attentions)\.(\d+)\.(.+)$")


def is_unet_target(name: str, targets: str) -> bool:
    """Whether the preset `targets` includes the UNet layer called `name` (diffusers' module name)."""
    if targets == "attention":
        return bool(_ATTENTION.search(name))
    if _TRANSFORMER.search(name):
        return True
    if _RESIDUAL.search(name):
        return targets in ("all", "full")
    return targets == "full" and bool(_OUTER.match(name))


def is_norm_target(name: str, targets: str) -> bool:
    """Whether the preset includes the blocks that the UNet's norm layer called `name` belongs to."""
    return targets != "attention" and is_unet_target(name, targets)


def is_text_target(name: str, targets: str, *, family: str) -> bool:
    """Whether the preset includes the text-encoder layer called `name` (transformers' module name)."""
    found = _TEXT_ATTENTION.search(name) or (targets != "attention" and _TEXT_MLP.search(name))
    if not found:
        return False
    return family != "sd2" or int(found.group(2)) < SD2_TEXT_LAYERS


def is_ia3_target(name: str, targets: str, *, is_packed: bool = False) -> bool:
    """Whether (IA)³ is meant for the layer called `name`, of those that the preset includes.

    Keys, values and the end of feed-forward blocks (Liu et al. 2022, section 3.3; LyCORIS' preset `ia3`); with `all`
    and `full` every linear layer. A1111 keeps OpenCLIP's attention `is_packed` and applies a file only if q, k, v and
    out are all in it, silently else.
    """
    return targets in ("all", "full") or bool(_IA3.search(name)) or (is_packed and ".self_attn." in name)


def is_on_ia3_input(name: str) -> bool:
    """Whether (IA)³ multiplies the layer's input: where it is the inner activation of a feed-forward block."""
    return bool(_IA3_INPUT.search(name))


def text_encoder_groups(count: int) -> tuple[tuple[str, str], ...]:
    """(group name, key prefix) of each of `count` text encoders."""
    if count == 1:
        return (("text_encoder", "lora_te"),)
    return tuple((f"text_encoder_{number}", f"lora_te{number}") for number in range(1, count + 1))


def text_key(name: str, prefix: str) -> str:
    """The file's name of a text-encoder layer.

    transformers 5 dropped the outer `text_model`; the files keep it.
    """
    return f"{prefix}_text_model_{name.removeprefix('text_model.')}".replace(".", "_")


def unet_keys(names: Iterable[str], *, family: str) -> dict[str, str]:
    """The file's names of UNet layers: diffusers' module name → `lora_unet_…`."""
    names = tuple(names)
    spelled: Mapping[str, str] = ldm_layer_names(names) if family == "sdxl" else {_LAST_NORM: _LDM_OUTER[_LAST_NORM]}
    return {name: f"lora_unet_{spelled.get(name, name)}".replace(".", "_") for name in names}


def ldm_layer_names(names: Iterable[str]) -> dict[str, str]:
    """diffusers' UNet layer names → those of the original ldm UNet.

    `names` must hold every target layer, since block numbers in ldm count over all of them: a UNet has
    n residual blocks per level on the way down and n + 1 on the way up. KeyError for a name that is no UNet's.
    """
    names = tuple(names)
    blocks = [match.groups() for match in map(_BLOCK.match, names) if match]
    per_level = _residual_blocks_per_level(blocks)
    with_attention = {int(level) for way, level, kind, _, _ in blocks if (way, kind) == ("up", "attentions")}
    return {name: _ldm_name(name, per_level, with_attention) for name in names}


def _residual_blocks_per_level(blocks: Iterable[tuple[str, ...]]) -> int:
    """How many residual blocks a level of the downward path has (2 in every Stable Diffusion).

    Attention stands behind residual blocks, so its numbers serve where only attention is adapted.
    """
    down = [int(n) for way, _, kind, n, _ in blocks if way == "down" and kind in ("resnets", "attentions")]
    return max(down, default=1) + 1


def _ldm_name(name: str, per_level: int, with_attention: set[int]) -> str:
    """One name of `ldm_layer_names`."""
    middle = _MIDDLE.match(name)
    if middle:
        kind, number, rest = middle.groups()
        position = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{position}.{_inside(kind, rest)}"
    block = _BLOCK.match(name)
    if not block:
        outer, _, leaf = name.rpartition(".")
        return f"{_LDM_OUTER[outer]}.{leaf}" if outer in _LDM_OUTER else _LDM_OUTER[name]
    way, level, kind, number, rest = block.groups()
    if way == "down":
        first = 1 + int(level) * (per_level + 1)
        return _down_name(first, kind, int(number), rest, per_level)
    first = int(level) * (per_level + 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + per_level}.{2 if int(level) in with_attention else 1}.{rest}"
    return f"output_blocks.{first + int(number)}.{_place(kind)}.{_inside(kind, rest)}"


def _down_name(first: int, kind: str, number: int, rest: str, per_level: int) -> str:
    if kind == "downsamplers":
        return f"input_blocks.{first + per_level}.0.{'op' + rest.removeprefix('conv')}"
    return f"input_blocks.{first + number}.{_place(kind)}.{_inside(kind, rest)}"


def _place(kind: str) -> int:
    """Within one ldm block the residual block comes first, attention second."""
    return 0 if kind == "resnets" else 1


def _inside(kind: str, rest: str) -> str:
    """The name inside a block; attention is called the same in both."""
    if kind == "attentions":
        return rest
    layer, _, leaf = rest.partition(".")
    return _LDM_RESNET[layer] + ("." + leaf if leaf else "")
