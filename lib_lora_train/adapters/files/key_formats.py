"""The key formats of LoRA files from different programs, converted to kohya's names.

| program | example |
| --- | --- |
| kohya, LyCORIS | `lora_unet_down_blocks_…_to_q.lora_down.weight`, `lora_te1_…`; kohya's first OFT `oft_unet_…` |
| LyCORIS 4.1 with transformers 5 | `lora_te_encoder_layers_…`, without `text_model_` |
| LyCORIS stand-alone | `lycoris_down_blocks_…_to_q.lokr_w1` (written by SimpleTuner) |
| diffusers | `unet.….to_q.lora_A.weight`, older `….to_q.lora.down.weight`, `….processor.to_q_lora.down.weight` |
| PEFT | `base_model.model.….to_q.lora_A.weight`, with or without `unet.` |
| ComfyUI, ldm | `diffusion_model.input_blocks.….to_q.…`, `text_encoders.clip_l.transformer.…` |
| diffusers, Anima | `transformer.transformer_blocks.0.attn1.to_q.lora_A.weight` |
| Anima's text adapter | `lora_unet_llm_adapter_…`, `diffusion_model.llm_adapter.…`, `text_conditioner.…` |
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OUTPUT_MAGNITUDE = "lora_magnitude_vector"
"""The ending of a DoRA magnitude that is one per output channel, whatever its shape."""

FIXED = ("alpha", "on_input", "oft_R.scaled_oft", "oft_R.terms")
"""Endings of numbers that are not trained; the last one is never in a file, but in PEFT's configuration."""

_RENAMED = (
    (re.compile(r"(?P<module>.+)[._]lora\.(?P<which>down|up)\.weight"), "lora_{}.weight"),
    (re.compile(r"(?P<module>.+)\.lora_linear_layer\.(?P<which>down|up)\.weight"), "lora_{}.weight"),
    (re.compile(r"(?P<module>.+)\.lora_(?P<which>A|B)(\.[^.]+)?\.weight"), "lora_{}.weight"),
    (re.compile(r"(?P<module>.+)\.(?P<which>lora_magnitude_vector)(\.[^.]+){0,2}"), OUTPUT_MAGNITUDE),
    (re.compile(r"(?P<module>.+)\.(?P<which>magnitude)"), OUTPUT_MAGNITUDE),  # ai-toolkit's
)
_SIDES = {"A": "down", "B": "up"}

_PARTS = (
    (r"(model\.)?diffusion_model\.|unet\.|oft_unet_", "lora_unet_"),
    (r"transformer\.(?=transformer_blocks\.\d+\.(attn[12]|ff|norm[123])\.)", "lora_unet_"),
    (r"transformer\.(?=(patch_embed\.proj|time_embed\.t_embedder|norm_out\.linear_[12]|proj_out)\b)", "lora_unet_"),
    (r"text_conditioner\.|lora_te_llm_adapter_", "lora_unet_llm_adapter_"),
    (r"text_encoders\.qwen3_06b\.transformer\.", "lora_te_"),
    (r"text_encoder_2\.|(text_encoders\.)?clip_g\.transformer\.", "lora_te2_"),
    (r"text_encoder(_1)?\.|(text_encoders\.)?clip_l\.transformer\.", "lora_te_"),
    (r"cond_stage_model\.transformer\.|conditioner\.embedders\.0\.transformer\.", "lora_te_"),
    (r"(?=(down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks)\.)", "lora_unet_"),
    (
        r"lycoris_(?=(down_blocks|up_blocks|mid_block|time_embedding|add_embedding)_|conv_(in|out|norm_out)$)",
        "lora_unet_",
    ),
    (r"lycoris_(?=(text_model|encoder_layers)_)", "lora_te_"),
    *((rf"{encoder}(?=encoder_layers_)", encoder) for encoder in ("lora_te_", "lora_te1_", "lora_te2_")),
    (r"oft_te_(?=text_model)", "lora_te_"),
    (r"(?=(conv_in|conv_out|conv_norm_out|time_embedding|add_embedding|time_embed|label_emb)\b)", "lora_unet_"),
    (r"(?=(text_model|encoder\.layers)\.)", "lora_te_"),
)
_PREFIXES = tuple((re.compile(pattern), kohya) for pattern, kohya in _PARTS)
_OLD_TEXT = re.compile(r"(self_attn)_to_(q|k|v|out)$")
_OLD_OUT = re.compile(r"(attn[12]_to_out)$")


def split_key(key: str, endings: Iterable[str]) -> tuple[str, str]:
    """(kohya's layer name, kohya's ending), one of `endings` and `FIXED`; (`key`, "") if it is not recognised."""
    for pattern, ending in _RENAMED:
        match = pattern.fullmatch(key)
        if match:
            which = match["which"]
            return kohya_name(match["module"]), ending.format(_SIDES.get(which, which))
    for ending in sorted((*endings, *FIXED), key=len, reverse=True):
        module = key[: -len(ending)]
        if key.endswith(ending) and module.endswith(".") and len(module) > 1:
            return kohya_name(module.rstrip(".")), ending
    return key, ""


def kohya_name(module: str) -> str:
    """kohya's name of a layer; `lora_te_` is the only text encoder, or the first of two."""
    name = re.sub(r"\.processor\b", "", module.removeprefix("base_model.model."))
    for pattern, kohya in _PREFIXES:
        match = pattern.match(name)
        if match:
            return _modern_name(kohya, name[match.end() :].replace(".", "_"))
    return name.replace(".", "_")


def _modern_name(part: str, rest: str) -> str:
    """The current name of layers from older diffusers (attention processors) and transformers (no `text_model`)."""
    if part == "lora_unet_":
        return part + _OLD_OUT.sub(r"\1_0", rest)
    plain = _OLD_TEXT.sub(r"\1_\2_proj", rest)
    return part + (f"text_model_{plain}" if plain.startswith("encoder_layers_") else plain)
