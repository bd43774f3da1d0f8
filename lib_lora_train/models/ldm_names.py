"""Maps names in diffusers and transformers to names in a checkpoint (ldm, sgm, open_clip).

Pure functions on names. They work for module names and parameter names alike, because only the start of a name differs;
layers inside attention blocks have the same names in both.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from lib_lora_train.models.architecture import TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIX

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    **dict.fromkeys(("to_q", "query"), "q"),  # the second are the names of diffusers before 0.16
    **dict.fromkeys(("to_k", "key"), "k"),
    **dict.fromkeys(("to_v", "value"), "v"),
    **dict.fromkeys(("to_out.0", "proj_attn"), "proj_out"),
}
_VAE_ATTENTION_NAMES = "|".join(map(re.escape, _VAE_ATTENTION))
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


@dataclass(frozen=True)
class Source:
    """Where a parameter is in the checkpoint: a tensor, or one third of it (`qkv_index` 0 q, 1 k, 2 v)."""

    name: str
    qkv_index: int | None = None
    is_transposed: bool = False


def ldm_unet_name(name: str, layers_per_block: int, up_has_attention: tuple[bool, ...]) -> str:
    """`down_blocks.0.attentions.1.proj_in` → `input_blocks.2.1.proj_in`.

    `up_has_attention`: for each up block, whether it has attention, since ldm numbers the upsampler after it.
    KeyError for a name that no SD UNet has.
    """
    for front, ldm in _UNET_ENDS.items():
        if name == front or name.startswith(f"{front}."):
            return ldm + name[len(front) :]
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, index, rest = found[1], int(found[2]), found[3]
        return f"middle_block.{2 * index}.{_resnet(rest)}" if kind == "resnets" else f"middle_block.1.{rest}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if not found:
        raise KeyError(name)
    way, block, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    per_block = layers_per_block + 1  # down: one more for the downsampler; up: one more layer
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * per_block}.0.op{rest.removeprefix('conv')}"
    if kind == "upsamplers":
        return f"output_blocks.{(block + 1) * per_block - 1}.{1 + up_has_attention[block]}.{rest}"
    position = (
        f"input_blocks.{1 + block * per_block + index}"
        if way == "down"
        else f"output_blocks.{block * per_block + index}"
    )
    return f"{position}.0.{_resnet(rest)}" if kind == "resnets" else f"{position}.1.{rest}"


def _resnet(rest: str) -> str:
    layer, _, end = rest.partition(".")
    return f"{_RESNET[layer]}.{end}" if end else _RESNET[layer]


def ldm_vae_name(name: str, levels: int) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1` → `decoder.up.3.block.1.conv1`; ldm numbers up blocks from the image."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if found := re.fullmatch(r"(\w+)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)", name):
        side, way, block, kind, index, rest = found[1], found[2], int(found[3]), found[4], found[5], found[6]
        level = block if way == "down" else levels - 1 - block
        part = f"block.{index}" if kind == "resnets" else f"{way}sample"
        return f"{side}.{way}.{level}.{part}.{rest}"
    if found := re.fullmatch(r"(\w+)\.mid_block\.resnets\.(\d)\.(.+)", name):
        return f"{found[1]}.mid.block_{int(found[2]) + 1}.{found[3]}"
    if found := re.fullmatch(rf"(\w+)\.mid_block\.attentions\.0\.({_VAE_ATTENTION_NAMES})(\..+)?", name):
        return f"{found[1]}.mid.attn_1.{_VAE_ATTENTION[found[2]]}{found[3] or ''}"
    return name


def open_clip_source(name: str, *, has_linear_projection: bool = False) -> Source:
    """Where OpenCLIP stores the transformers parameter `name` (without `text_model.`); q, k and v share a tensor."""
    if name == "text_projection.weight" and has_linear_projection:
        return Source(name)
    if name == "text_projection.weight":
        return Source("text_projection", is_transposed=True)
    for front, theirs in _OPEN_CLIP.items():
        if name.startswith(front):
            return Source(theirs + name[len(front) :])
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if not found:
        raise KeyError(name)
    layer, part, end = f"transformer.resblocks.{found[1]}", found[2], found[3]
    if part in _OPEN_CLIP_LAYER:
        return Source(f"{layer}.{_OPEN_CLIP_LAYER[part]}.{end}")
    qkv_index = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").index(part)
    return Source(f"{layer}.attn.in_proj_{end}", qkv_index=qkv_index)


# --- the names of whole networks in diffusers' layout ---------------------------------------------


def unet_names(names: Iterable[str]) -> dict[str, str]:
    """Each name of a UNet in diffusers' layout → its name in a checkpoint; without those that no SD UNet has."""
    known = list(names)
    layers = len({name.split(".")[3] for name in known if name.startswith("down_blocks.0.resnets.")})
    blocks = {int(name.split(".")[1]) for name in known if re.match(r"up_blocks\.\d+\.", name)}
    has_attention = tuple(
        any(name.startswith(f"up_blocks.{block}.attentions.") for name in known)
        for block in range(max(blocks, default=-1) + 1)
    )
    found: dict[str, str] = {}
    for name in known:
        with contextlib.suppress(KeyError):
            found[name] = UNET_PREFIX + ldm_unet_name(name, layers, has_attention)
    return found


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Each name of a VAE in diffusers' layout → its name in a checkpoint."""
    known = list(names)
    levels = len({name.split(".")[2] for name in known if name.startswith("encoder.down_blocks.")})
    return {name: VAE_PREFIX + ldm_vae_name(name, levels) for name in known}


def text_names(names: Iterable[str], *, number: int, is_sdxl: bool) -> dict[str, str]:
    """Each name of a text encoder of transformers → its name in a checkpoint; `number` 0 is the first encoder."""
    prefix = TEXT_PREFIXES[1 + number if is_sdxl else 0]
    return {name: f"{prefix}transformer.{name}" for name in names}
