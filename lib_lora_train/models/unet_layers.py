"""Which UNet layers a target preset includes, and their names in LoRA files.

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
_OUTER = re.compile(r"^(conv_in|conv_out|conv_norm_out|time_embedding\.linear_[12]|add_embedding\.linear_[12])$")
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


def kohya_key(name: str) -> str:
    """A layer's name in files in kohya's spelling, for the UNet or the transformer in its place."""
    return f"lora_unet_{name}".replace(".", "_")


def unet_keys(names: Iterable[str], *, architecture: str) -> dict[str, str]:
    """diffusers' UNet module name → its name in files, `lora_unet_…`."""
    names = tuple(names)
    renamed: Mapping[str, str] = ldm_layer_names(names) if architecture == "sdxl" else _LAST_NORM
    return {name: kohya_key(renamed.get(name, name)) for name in names}


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
