"""Recognises files for models that are not supported, by their layer names.

Many of them contain CLIP-L layers, as SD1 and SDXL do: those would fit, but would be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lib_lora_train.core.errors import AdapterError

_BODY = r"^(lora_unet|lora_transformer|transformer|lycoris)_"
# The first match counts: some models have all layer names of another model, plus others.
_KINDS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"distilled_guidance_layer", "Chroma"),
        (r"individual_token_refiner|token_refiner_blocks", "HunyuanVideo"),
        (r"joint_transformer_blocks_\d", "AuraFlow"),
        (r"single_transformer_blocks_\d|double_blocks_\d+_(img|txt)_|single_blocks_\d+_(linear|modulation)", "Flux"),
        (r"transformer_blocks_\d+_(img|txt)_(mlp|mod)", "Qwen-Image"),
        (r"joint_blocks_\d|transformer_blocks_\d+_attn_add_[qkv]_proj", "SD3"),
        (r"(context|noise)_refiner_\d", "Lumina or Z-Image"),
        (_BODY + r"layers_\d+_(attention|feed_forward)", "Lumina or Z-Image"),
        (_BODY + r"blocks_\d+_(self_attn|cross_attn|attn[12]|ffn)", "Wan or Cosmos"),
        (_BODY + r"transformer_blocks_\d+_(attn1|attn2|ff)_", "PixArt or Sana"),
        (r"^lora_prior_", "Stable Cascade"),
        (r"^(lora_te3_|text_encoders_t5)", "SD3 or Flux"),
        (r"^(lora_transformer|transformer)_", "a transformer model"),
    )
)


def identify_other_model(layers: Iterable[str]) -> str:
    """The model that layers with these kohya names belong to; "" if it may be Stable Diffusion."""
    names = tuple(layers)
    return next((kind for pattern, kind in _KINDS if any(pattern.search(name) for name in names)), "")


def refuse_other_models(layers: Iterable[str]) -> None:
    """AdapterError, naming the model, if it is not Stable Diffusion."""
    kind = identify_other_model(layers)
    if kind:
        raise AdapterError(f"This file is for {kind}. Only files for SD1, SD2 and SDXL can be used here.")
