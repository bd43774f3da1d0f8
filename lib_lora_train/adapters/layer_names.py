"""Which layers a target preset includes, and their names in LoRA files.

Everything here works on module names as strings, so it does not depend on class names of library versions.
Files use diffusers' block names for SD1 and SD2 and the original ldm block names for SDXL: the two spellings that every
webui resolves. The last norm is an exception: A1111 knows only its ldm name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lib_lora_train.models.ldm_names import ldm_unet_name

_ATTENTION = re.compile(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$")
_TRANSFORMER = re.compile(r"(^|\.)attentions\.\d+\.")
_RESIDUAL = re.compile(r"(^|\.)(resnets|downsamplers|upsamplers)\.\d+\.")
_TEXT_ATTENTION = re.compile(r"(^|\.)layers\.(\d+)\.self_attn\.(q|k|v|out)_proj$")
_TEXT_MLP = re.compile(r"(^|\.)layers\.(\d+)\.mlp\.fc[12]$")

_IA3 = re.compile(r"(to_k|to_v|ff\.net\.2|[kv]_proj|mlp\.fc2)$")
_IA3_INPUT = re.compile(r"(ff\.net\.2|mlp\.fc2)$")

_OUTER = re.compile(r"^(conv_in|conv_out|conv_norm_out|time_embedding\.linear_[12]|add_embedding\.linear_[12])$")

SD2_TEXT_LAYERS = 23
"""SD2 uses the second-to-last layer of OpenCLIP-H; the 24th never reaches the UNet."""

_LAST_NORM = {"conv_norm_out": "out.0"}  # the one diffusers name that A1111 does not know
_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


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
    """Whether the preset includes the block of the UNet norm layer called `name`."""
    return targets != "attention" and is_unet_target(name, targets)


def is_text_target(name: str, targets: str, *, architecture: str) -> bool:
    """Whether the preset includes the text-encoder layer called `name` (transformers' module name)."""
    found = _TEXT_ATTENTION.search(name) or (targets != "attention" and _TEXT_MLP.search(name))
    if not found:
        return False
    return architecture != "sd2" or int(found.group(2)) < SD2_TEXT_LAYERS


def is_ia3_target(name: str, targets: str, *, is_packed: bool = False) -> bool:
    """Whether (IA)³ adapts the layer called `name`, one of those that the preset includes.

    Keys, values and the last layer of feed-forward blocks (Liu et al. 2022, section 3.3; LyCORIS' preset `ia3`); with
    `all` and `full` every linear layer. A1111 packs OpenCLIP's attention into one tensor (`is_packed`) and silently
    ignores a file that does not hold all of q, k, v and out.
    """
    return targets in ("all", "full") or bool(_IA3.search(name)) or (is_packed and ".self_attn." in name)


def is_on_ia3_input(name: str) -> bool:
    """Whether (IA)³ scales the layer's input: the inner activation of a feed-forward block."""
    return bool(_IA3_INPUT.search(name))


def text_encoder_groups(count: int) -> tuple[tuple[str, str], ...]:
    """(group name, key prefix) of each of `count` text encoders."""
    if count == 1:
        return (("text_encoder", "lora_te"),)
    return tuple((f"text_encoder_{number}", f"lora_te{number}") for number in range(1, count + 1))


def text_key(name: str, prefix: str) -> str:
    """A text-encoder layer's name in files, with the `text_model` that transformers 5 dropped."""
    return f"{prefix}_text_model_{name.removeprefix('text_model.')}".replace(".", "_")


def unet_keys(names: Iterable[str], *, architecture: str) -> dict[str, str]:
    """diffusers' UNet module name → its name in files, `lora_unet_…`."""
    names = tuple(names)
    renamed: Mapping[str, str] = ldm_layer_names(names) if architecture == "sdxl" else _LAST_NORM
    return {name: f"lora_unet_{renamed.get(name, name)}".replace(".", "_") for name in names}


def ldm_layer_names(names: Iterable[str]) -> dict[str, str]:
    """diffusers' UNet layer names → those of the original ldm UNet.

    `names` must hold every target layer, since ldm numbers its blocks across all of them: a UNet has n residual blocks
    per level on the way down and n + 1 on the way up. KeyError for a name that no UNet has.
    """
    names = tuple(names)
    blocks = [match.groups() for match in map(_BLOCK.match, names) if match]
    up_levels = {int(level) for way, level, _, _ in blocks if way == "up"}
    with_attention = {int(level) for way, level, kind, _ in blocks if (way, kind) == ("up", "attentions")}
    up_has_attention = tuple(level in with_attention for level in range(1 + max(up_levels, default=0)))
    layers_per_block = _residual_blocks_per_level(blocks)
    return {name: ldm_unet_name(name, layers_per_block, up_has_attention) for name in names}


def _residual_blocks_per_level(blocks: Iterable[tuple[str, ...]]) -> int:
    """How many residual blocks a level of the downward path has (2 in every Stable Diffusion).

    Attention layers have the numbers of their residual blocks, so they suffice if only attention is adapted.
    """
    down = [int(n) for way, _, kind, n in blocks if way == "down" and kind in ("resnets", "attentions")]
    return max(down, default=1) + 1
