"""The models that cannot be trained here: by what their checkpoints, LoRA files, settings and folders are recognised.

Many of their LoRAs contain CLIP-L layers, as those of SD1 and SDXL do: these would fit, but would be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lib_lora_train.config.architecture_titles import TITLES
from lib_lora_train.core.errors import AdapterError
from lib_lora_train.models.architecture import Architecture

NEEDS_SD = "Only SD 1.x, SD 2.x, SDXL and, in Forge Neo, Anima can be trained."


@dataclass(frozen=True)
class OtherModel:
    """A model, or several that are recognised by the same sign; an empty sign is never found.

    `tensors` is a pattern for names in a checkpoint, `layers` for kohya's layer names in a LoRA. `words` are the
    beginnings of its names in settings, and of its diffusers pipelines, in lower case without punctuation.
    """

    name: str
    tensors: str = ""
    layers: str = ""
    words: tuple[str, ...] = ()


_BODY = r"^(lora_unet|lora_transformer|transformer|lycoris)_"
_ANIMA_LAYERS = (
    rf"{_BODY}(blocks_\d+_((self|cross)_attn_(q|k|v|output)_proj|mlp_layer[12]|adaln_modulation_)|llm_adapter_"
    r"|transformer_blocks_\d+_norm[123]_linear_[12])|^lora_te\d?_(model_)?layers_\d+_(self_attn|mlp)_"
)
_ANIMA_OR_OTHERS = "PixArt, Sana or Anima"
"""What names in diffusers' spelling say alone, without the widths of the layers."""
_KEYS_IN_DIFFUSERS = re.compile(r"transformer_blocks_\d+_attn2_to_[kv]$")
_BODY_IN_DIFFUSERS = re.compile(r"transformer_blocks_\d+_(attn1_to_[qkv]|attn2_to_q|ff_net_0_proj)$")
# The first match counts: several models have all the names of another one, and more.
OTHER_MODELS: tuple[OtherModel, ...] = (
    OtherModel("Chroma", r"distilled_guidance_layer", r"distilled_guidance_layer", ("chroma",)),
    OtherModel("Flux.2", r"(double|single)_stream_modulation", words=("flux2",)),
    OtherModel("Hunyuan-DiT", r"mlp_t5\.|text_embedding_padding|extra_embedder", words=("hunyuandit",)),
    OtherModel("HunyuanImage", words=("hunyuanimage",)),
    OtherModel(
        "Hunyuan video or image",
        r"individual_token_refiner|token_refiner_blocks|byt5_in\.",
        r"individual_token_refiner|token_refiner_blocks",
        ("hunyuan",),
    ),
    OtherModel("OmniGen2", r"ref_image_refiner", words=("omnigen",)),
    OtherModel(
        "AuraFlow",
        r"joint_transformer_blocks\.|double_layers\.\d+\.attn\.w",
        r"joint_transformer_blocks_\d",
        ("auraflow",),
    ),
    OtherModel("HiDream", r"(double|single)_stream_blocks\.", words=("hidream",)),
    OtherModel(
        "Flux",
        r"(double_blocks|single_blocks|single_transformer_blocks)\.\d",
        r"single_transformer_blocks_\d|double_blocks_\d+_(img|txt)_|single_blocks_\d+_(linear|modulation)",
        ("flux",),
    ),
    OtherModel(
        "Qwen-Image",
        r"transformer_blocks\.\d+\.(img|txt)_(mlp|mod)|txt_norm\.",
        r"transformer_blocks_\d+_(img|txt)_(mlp|mod)",
        ("qwen",),
    ),
    OtherModel(
        "SD3",
        r"joint_blocks\.\d|\.add_[qkv]_proj\.",
        r"joint_blocks_\d|transformer_blocks_\d+_attn_add_[qkv]_proj",
        ("sd3", "stablediffusion3"),
    ),
    OtherModel("Z-Image", r"(x|cap)_pad_token", words=("zimage",)),
    OtherModel("Lumina", words=("lumina",)),
    OtherModel(
        "Lumina or Z-Image",
        r"(noise|context)_refiner\.|cap_embedder\.",
        rf"(context|noise)_refiner_\d|{_BODY}layers_\d+_(attention|feed_forward)",
    ),
    OtherModel("AnimateDiff", words=("animatediff",)),
    OtherModel("Anima", r"llm_adapter\.", _ANIMA_LAYERS, ("anima",)),
    OtherModel(
        "Cosmos or Anima",
        r"adaln_modulation_|(^|\.)blocks\.\d+\.self_attn\.q_proj|\bt_embedder\.1\.",
        words=("cosmos",),
    ),
    OtherModel("Wan", r"(^|\.)blocks\.\d+\.(self_attn|cross_attn)\.[qkvo]\.", words=("wan",)),
    OtherModel("Wan or Cosmos", layers=_BODY + r"blocks_\d+_(self_attn|cross_attn|attn[12]|ffn)"),
    OtherModel("LTX-Video", r"patchify_proj", words=("ltx",)),
    OtherModel("Sana", r"conv_inverted|glumb_conv", words=("sana",)),
    OtherModel("PixArt", words=("pixart",)),
    OtherModel(
        "PixArt or Sana",
        r"(^|\.)t_block\.1|y_embedder\.y|adaln_single\.|^caption_projection\.|blocks\.\d+\.scale_shift_table",
    ),
    OtherModel(_ANIMA_OR_OTHERS, layers=_BODY + r"transformer_blocks_\d+_(attn1|attn2|ff)_"),
    OtherModel(
        "Stable Cascade",
        r"effnet_mapper|clip_(txt|img)(_pooled)?_mapper",
        r"^lora_prior_",
        ("stablecascade", "wuerstchen"),
    ),
    OtherModel("Lumina or Z-Image", r"layers\.\d+\.attention\.(qkv|to_q|wq)\b"),
    OtherModel("Stable Video Diffusion", r"time_stack|time_mix(er|_blocks)", words=("stablevideodiffusion",)),
    OtherModel("Kolors", words=("kolors",)),
    OtherModel("Kandinsky", words=("kandinsky",)),
    OtherModel("DeepFloyd IF", words=("ifpipeline", "ifimg2img", "ifinpainting", "ifsuperresolution")),
    OtherModel("Mugen (SDXL with another VAE)", words=("mugen",)),
    OtherModel("Krea 2", words=("krea",)),
    OtherModel("Ernie-Image", words=("ernie",)),
    OtherModel("PiD", words=("pid",)),
    OtherModel("SD3 or Flux", layers=r"^(lora_te3_|text_encoders_t5)"),
    OtherModel("a transformer model", layers=r"^(lora_transformer|transformer)_"),
)


def find_by_layers(widths: Mapping[str, int | None]) -> str:
    """The model that layers with these kohya names and input widths belong to; "" if it may be Stable Diffusion.

    In diffusers' spelling Anima has the names of PixArt and Sana. It alone attends to text of another width than its
    own, which the other two project to theirs.
    """
    signs = ((model.name, re.compile(model.layers)) for model in OTHER_MODELS if model.layers)
    found = next((name for name, sign in signs if any(sign.search(layer) for layer in widths)), "")
    if found != _ANIMA_OR_OTHERS:
        return found
    text, own = (
        {width for name, width in widths.items() if width and sign.search(name)}
        for sign in (_KEYS_IN_DIFFUSERS, _BODY_IN_DIFFUSERS)
    )
    if not text or not own:
        return found
    return "PixArt or Sana" if text == own else "Anima"


def refuse_other_models(widths: Mapping[str, int | None], architecture: Architecture) -> None:
    """AdapterError, naming the model, if layers with these names and widths are not for a Stable Diffusion."""
    other = find_by_layers(widths)
    if other == "Anima":
        raise AdapterError(
            f"This file is for Anima, but the model is {TITLES[architecture]}. Choose an Anima checkpoint."
        )
    if other:
        raise AdapterError(f"This file is for {other}. Only files for SD1, SD2, SDXL and Anima can be used here.")


def find_by_word(word: str) -> str:
    """The model that a setting, or the class of a pipeline, names; "" if it may be Stable Diffusion."""
    plain = re.sub(r"[^a-z0-9]", "", word.lower())
    return next((model.name for model in OTHER_MODELS if model.words and plain.startswith(model.words)), "")


def with_article(name: str) -> str:
    """`a Flux`, `an SD3`."""
    return f"{'an' if name[:1] in 'AEIO' or name.startswith(('SD', 'LTX')) else 'a'} {name}"
